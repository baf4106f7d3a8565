"""Task kinds for tests of many hosts."""
