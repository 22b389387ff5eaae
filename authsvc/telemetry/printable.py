"""Text that is safe on a terminal and stays on its line."""


def escape(text: str) -> str:
    r"""Return a text with escapes for what does not print: control characters, line separators, bidi overrides.

    A value of a stored row could otherwise forge a line, or control the terminal that shows it. A line break becomes
    `\n`, an escape character `\x1b`.
    """
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
