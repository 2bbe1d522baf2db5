"""Pure pricing: no I/O, no clock, no framework. Amounts are integers, rates are basis points."""
