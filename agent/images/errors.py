"""Why an image can not be had, as types that say what the caller should do.

    ImageError
     +- Refused              nothing will change it: refuse the task
     |   +- NotFound         no such image, tag, file
     |   +- WrongDigest      the bytes are not the ones that were asked for
     |   +- WrongArchitecture
     |   +- NotPermitted     the registry wants other credentials, or the node's settings forbid it
     |   +- BadCertificate   the registry is not who it should be
     |   +- Hostile          a layer that no honest tool writes
     +- DiskFull             room has to be made first
     +- Unreachable          the registry is down, or too slow: try again later

The text is for people and names the image.
"""

from __future__ import annotations


class ImageError(Exception):
    pass


class Refused(ImageError):
    pass


class NotFound(Refused):
    pass


class WrongDigest(Refused):
    pass


class WrongArchitecture(Refused):
    pass


class NotPermitted(Refused):
    pass


class BadCertificate(Refused):
    pass


class Hostile(Refused):
    pass


class DiskFull(ImageError):
    pass


class Unreachable(ImageError):
    pass
