"""Nested dicts of arrays: the one container for weights, gradients and optimiser states.

A tree is an array, or a dict from names to trees. Weights carry the checkpoint's own names, so
`params["h"]["0"]["attn"]["c_attn"]["weight"]` is `h.0.attn.c_attn.weight` in the file.
"""


def flatten(tree, prefix=""):
    """{"h": {"0": {"ln_1": w}}} -> {"h.0.ln_1": w}, in the tree's own order."""
    if not isinstance(tree, dict):
        return {prefix: tree}
    flat = {}
    for name, child in tree.items():
        flat |= flatten(child, f"{prefix}.{name}" if prefix else name)
    return flat


def unflatten(flat):
    """{"h.0.ln_1": w} -> {"h": {"0": {"ln_1": w}}}; the inverse of `flatten`."""
    tree = {}
    for path, leaf in flat.items():
        *parents, name = path.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = leaf
    return tree


def tree_map(f, tree, *others):
    """The tree of f(leaf, *leaves), where the other trees have the same names."""
    if not isinstance(tree, dict):
        return f(tree, *others)
    return {name: tree_map(f, child, *(other[name] for other in others)) for name, child in tree.items()}


def child(tree, name):
    """tree[name], or None where there is none: how `grads=None` (frozen) is handed down, for all or a part."""
    return None if tree is None else tree.get(name)
