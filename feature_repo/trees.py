"""A bundle's trees as values, read from its ONNX file; what they say of a vector is in ``feature_repo.contributions``."""

from __future__ import annotations

import math

from feature_repo.contributions import TESTS, Leaf, Split, Trees
from feature_repo.tree_file import check_tree_file, not_trees

__all__ = ["read_trees"]


def read_trees(data: bytes) -> Trees:
    """The trees of an ONNX file. Raises BundleError where it is no binary classifier of trees."""
    check_tree_file(data)
    import onnx

    model = onnx.load_model_from_string(data)
    if len(model.graph.node) != 1:
        raise not_trees(f"it has {len(model.graph.node)} nodes")
    told = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in model.graph.node[0].attribute}
    modes = {mode.decode() for mode in told["nodes_modes"]}
    if told.get("post_transform") != b"LOGISTIC" or set(told["class_ids"]) != {0} or not modes <= {*TESTS, "LEAF"}:
        raise not_trees("it is not a binary classifier with numeric splits")
    rows = list(zip(told["nodes_treeids"], told["nodes_nodeids"], strict=True))
    at = {key: i for i, key in enumerate(rows)}
    counts = told.get("nodes_hitrates", [])
    counted = len(counts) == len(rows) and any(count != counts[0] for count in counts)
    leaf_keys = zip(told["class_treeids"], told["class_nodeids"], strict=True)
    values = dict(zip(leaf_keys, told["class_weights"], strict=True))
    children = {(tree, node) for (tree, _), i in at.items() if told["nodes_modes"][i] != b"LEAF"
                for node in (told["nodes_truenodeids"][i], told["nodes_falsenodeids"][i])}
    leaves: list[Leaf] = []
    open_: list[tuple[tuple[int, int], tuple[Split, ...]]] = [(key, ()) for key in rows if key not in children]
    while open_:
        key, path = open_.pop()
        i, tree = at[key], key[0]
        if told["nodes_modes"][i] == b"LEAF":
            leaves.append(Leaf(values[key], path))
            continue
        ways = [(True, (tree, told["nodes_truenodeids"][i])), (False, (tree, told["nodes_falsenodeids"][i]))]
        met = [counts[at[child]] if counted else 1.0 for _, child in ways]
        for (holds, child), count in zip(ways, met, strict=True):
            split = Split(told["nodes_featureids"][i], told["nodes_modes"][i].decode(), told["nodes_values"][i], holds,
                          bool(told["nodes_missing_value_tracks_true"][i]), count / sum(met) if sum(met) else 0.5)
            open_.append((child, (*path, split)))
    width = model.graph.input[0].type.tensor_type.shape.dim[1].dim_value
    return Trees(tuple(leaves), math.fsum(told.get("base_values", [])), width, counted)

