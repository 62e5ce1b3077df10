"""What the words of a report mean, for readers who do not train models. The report shows them on hover and on focus."""

from __future__ import annotations

GLOSSARY: dict[str, tuple[str, str]] = {
    "label": ("Label", "A category that a text can have."),
    "accuracy": ("Accuracy", "The share of texts that got exactly the right labels."),
    "precision": ("Precision", "Of the texts that got the label, the share that should have it."),
    "recall": ("Recall", "Of the texts that should have the label, the share that got it."),
    "f1": (
        "F1",
        "One number for precision and recall, their harmonic mean: 1 is perfect, and it is low if either of them is.",
    ),
    "micro": ("micro", "Counts every decision alike, so frequent labels weigh more."),
    "macro": ("macro", "The mean over the labels, so a rare label weighs as much as a frequent one."),
    "interval": (
        "95 % interval",
        "Where the value would lie with other texts of the same kind, in 95 of 100 cases. A short interval means that "
        "the test is large enough to trust the value.",
    ),
    "noise": (
        "Noise",
        "A difference that could as well come from the choice of test texts. It is called more than noise if 95 % of "
        "the resampled tests agree on its sign.",
    ),
    "baseline": ("Baseline", "A simple classifier for comparison. Fine-tuning has to beat it to be worth its cost."),
    "majority": ("Majority", "Gives every text the most frequent labels, without reading it."),
    "tfidf_centroid": ("TF-IDF centroid", "Finds the labels whose training texts use the same words on average."),
    "tfidf_linear": ("TF-IDF + linear", "A classic classifier that counts words. It trains in seconds without a GPU."),
    "probe": (
        "Frozen + linear probe",
        "The pretrained language model unchanged, with a linear classifier on top of what it has read.",
    ),
    "seed": (
        "Seed",
        "The number that random choices of a training start from. Several seeds show how much of a result is chance.",
    ),
    "split": (
        "Split",
        "The texts are split: the model learns from train, choices are made on validation, and test is looked at only "
        "at the end.",
    ),
    "support": (
        "Support",
        "How many texts of the split have the label. Figures of labels with few texts are uncertain.",
    ),
    "threshold": ("Threshold", "The probability from which on a text gets the label."),
    "average_precision": (
        "Average precision",
        "How well the label is ranked, for all thresholds at once: the area under the curve of precision over recall.",
    ),
    "calibration": (
        "Calibration",
        "Whether probabilities can be taken at their word: of decisions with probability 0.8, 80 % should be right.",
    ),
    "confusion": ("Confusion", "A label that was given in place of the right one."),
    "loss": ("Loss", "What training makes smaller: how surprised the model is by the right labels."),
    "step": ("Optimizer step", "One change of the weights, computed from one batch of texts."),
    "epoch": ("Epoch", "One pass over all training texts."),
    "gpu_hours": ("GPU hours", "Hours of training times the number of GPUs. Times the price per hour, it is the cost."),
    "recipe": ("Recipe", "The file that says how the model was trained. The same recipe gives the same model again."),
}
