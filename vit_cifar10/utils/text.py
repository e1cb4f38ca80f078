"""Text from any source, made safe for a terminal or a picture."""


def printable(text):
    """Make text from any source safe for a terminal or a picture: replace all characters that cannot be printed."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)


def one_line(message):
    """A message, such as an exception, as one line that is safe to print."""
    return printable(" ".join(str(message).split()))
