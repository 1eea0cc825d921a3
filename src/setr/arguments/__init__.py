"""The words of the command line: options, their values, and what is wrong with them."""
