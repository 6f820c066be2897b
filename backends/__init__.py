"""Back ends: each turns a tile program into source and the source into something callable.

Nothing outside this package knows a target's language; this package never imports torch.
"""
