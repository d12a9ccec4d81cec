"""The bugs people make, each as a wrong implementation that can be run, and the conventions they are taken for."""

from minicompress.verification.catalogue import backward, block, chance, distillation, front, loss, repeated

BUGS = [*front.BUGS, *block.BUGS, *distillation.BUGS, *loss.BUGS, *backward.BUGS, *repeated.BUGS, *chance.BUGS]
