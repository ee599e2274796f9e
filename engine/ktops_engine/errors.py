"""The one exception that reaches a user: what happened, why, and the command to run next."""

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_PARTIAL = 3
EXIT_NOT_ENOUGH = 4


class KtopsError(Exception):
    """A failure with an explanation.

    `code` is a stable kebab-case id (documented, asserted in tests), `message` says what happened
    and why in one or two sentences, `hint` is the command to run or the thing to change next.
    `exit_status` is the process status of a command that ends with this error: 1 failed, 2 usage,
    3 partial, 4 the machine has not enough.
    """

    def __init__(
        self, code: str, message: str, hint: str = "", *, exit_status: int = EXIT_FAILED
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.hint = hint
        self.exit_status = exit_status
