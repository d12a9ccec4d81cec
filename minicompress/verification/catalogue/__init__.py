"""The bugs people make, each as a wrong implementation that can be run, and the conventions they are taken for."""

from minicompress.verification.catalogue import block, front, later, loss

BUGS = [*front.BUGS, *block.BUGS, *loss.BUGS, *later.BUGS]
