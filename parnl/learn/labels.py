"""Labels as a model learns them: numbers of classes, or real targets."""

import numpy as np

from parnl.learn.readers.collection import Collection, shown

HOW = "a column of the table or a file of labels is named by label="


def classes_of(collection: Collection) -> tuple[tuple[str, ...], np.ndarray]:
    """The names of the classes, and the class of each series (N,) int64.

    Labels that are whole numbers are sorted as numbers, text by the alphabet.
    """
    labels = _present(collection)
    if labels.ndim > 1:
        raise ValueError(
            f"data: {collection.source}: got {labels.shape[1]} labels a series, expected one class"
        )
    numbers = _numbers(labels)
    if numbers is not None:
        whole = np.isfinite(numbers) & (numbers == np.round(numbers))
        if not whole.all():
            i = int((~whole).argmax())
            raise ValueError(
                f"data: {collection.source}: {collection.label_place(i)}: got the label "
                f"{numbers[i]:g}, expected a class: a name or a whole number"
            )
        labels = numbers.astype(np.int64)
    names, found = np.unique(labels, return_inverse=True)
    if len(names) < 2:
        raise ValueError(
            f"data: {collection.source}: all labels are {shown(str(names[0]))}, expected at least "
            "two classes"
        )
    return tuple(map(str, names)), found.astype(np.int64)


def class_numbers(collection: Collection, classes: tuple[str, ...]) -> np.ndarray:
    """The class (N,) of each series among those that a model knows."""
    labels = _present(collection)
    numbers = _numbers(labels)
    if numbers is not None and np.all(numbers == np.round(numbers)):
        labels = numbers.astype(np.int64)
    index = {name: k for k, name in enumerate(classes)}
    texts = labels.astype(str).tolist()
    for i, text in enumerate(texts):
        if text not in index:
            raise ValueError(
                f"data: {collection.source}: {collection.label_place(i)}: got the label "
                f"{shown(text)}, expected one of {', '.join(classes)}"
            )
    return np.array([index[text] for text in texts], np.int64)


def targets_of(collection: Collection) -> np.ndarray:
    """Real targets (N, k) float32; one a series is (N, 1)."""
    labels = _present(collection)
    numbers = _numbers(labels)
    if numbers is None:
        i = next(i for i, text in enumerate(labels.tolist()) if _number(text) is None)
        raise ValueError(
            f"data: {collection.source}: {collection.label_place(i)}: got the label "
            f"{shown(str(labels[i]))}, expected a number"
        )
    bad = ~(np.abs(numbers) <= 3e38)
    if bad.any():
        i = int(np.argwhere(bad)[0][0])
        raise ValueError(
            f"data: {collection.source}: {collection.label_place(i)}: got the label "
            f"{numbers[i]}, expected a finite number"
        )
    return numbers.astype(np.float32).reshape(len(numbers), -1)


def _present(collection: Collection) -> np.ndarray:
    if collection.labels is None:
        raise ValueError(f"data: {collection.source} has no labels; {HOW}")
    return collection.labels


def _numbers(labels: np.ndarray) -> np.ndarray | None:
    """Labels as float64, or None if any of them is no number."""
    if labels.dtype.kind in "US":
        found = [_number(text) for text in labels.tolist()]
        return None if None in found else np.array(found, np.float64)
    return labels.astype(np.float64)


def _number(text: str) -> float | None:
    try:
        return float(text) if "_" not in text else None
    except ValueError:
        return None
