"""The intermediate representation: three levels, one textual form, an executable meaning.

This package imports nothing of Tilewright outside itself and never imports torch.
"""
