"""What crosses the privilege boundary: messages, the channel that carries them, the resolved configuration.

Standard library only, so that the root monitor may import it.
"""
