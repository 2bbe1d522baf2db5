"""Catalogues from elsewhere: files, the grocer's year, the built-in sample. They end in the database, priced."""
