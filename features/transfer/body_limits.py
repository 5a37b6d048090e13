"""How much of a server's answer is taken."""

CHUNK = 2**18  # bytes handed on at once
MOST_BODY = 2**25  # bytes of a listing, or of an error's description
