"""The package's own error: something that the user can put right, said in one line.

The command line prints it without a traceback and exits non-zero; all else that escapes is our bug.
"""


class ClearSRError(ValueError):
    """A mistake in the input, in a flag, in a configuration or in a weights folder.

    The message is one line: the file or flag, what is wrong with it, and what is accepted.
    """
