"""Where the fixtures come from."""

pytest_plugins = ["tests.support.stores", "tests.support.system", "tests.support.otlp", "tests.support.shop"]
