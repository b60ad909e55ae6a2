"""Published accuracies of 20 tasks (the superclasses of CIFAR-100, VGG-16), in percent.

Hung et al., NeurIPS 2019, slides p. 21-22 and the repository's README. Two numbers of the README's row of CPG are other
ones than those of the slides: 84.2 for task 9 and 84.4 for task 16. The printed average is that of the slides' numbers.
"""

ROWS = {
    "PackNet": (
        66.4, 80.0, 76.2, 78.4, 80.0, 79.8, 67.8, 61.4, 68.8, 77.2, 79.0, 59.4, 66.4, 57.2, 36.0, 54.2,
        51.6, 58.8, 67.8, 83.2,
    ),
    "PAE": (
        67.2, 77.0, 78.6, 76.0, 84.4, 81.2, 77.6, 80.0, 80.4, 87.8, 85.4, 77.8, 79.4, 79.6, 51.2, 68.4,
        68.6, 68.6, 83.2, 88.8,
    ),
    "independent": (
        65.8, 78.4, 76.6, 82.4, 82.2, 84.6, 78.6, 84.8, 83.4, 89.4, 87.8, 80.2, 84.4, 80.2, 52.0, 69.4,
        66.4, 70.0, 87.2, 91.2,
    ),
    "CPG": (
        65.2, 76.6, 79.8, 81.4, 86.6, 84.8, 83.4, 85.0, 87.2, 89.2, 90.8, 82.4, 85.6, 85.2, 53.2, 74.4,
        70.0, 73.4, 88.8, 94.8,
    ),
}  # fmt: skip
#: Printed mean and times the weights of one network.
PRINTED = {"PackNet": (67.5, 1), "PAE": (77.1, 2), "independent": (78.8, 20), "CPG": (80.9, 1.5)}
#: Task, counted from 1, and the number in the README.
README_TYPOS = {9: 84.2, 16: 84.4}
