"""The servers the tests need: the ones they are pointed to, else started here, on loopback, for one run."""
