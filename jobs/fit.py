"""Gradient-boosted trees: one recipe, fitted in this process or on Spark, and its ONNX form."""

from __future__ import annotations

import json
import logging
import os
from typing import Any

import numpy as np

from feature_repo.bundle import INPUT
from feature_repo.models import ModelSpec
from schemas.errors import JobError

__all__ = ["fit_local", "fit_spark", "recipe", "to_onnx"]


def recipe(spec: ModelSpec) -> dict[str, Any]:
    """Every parameter that decides what the trees are, none left to a default: XGBoost 3.2 changed its own (``base_score``,
    ``tree_method``) and may do so again."""
    return {
        "objective": "binary:logistic", "base_score": 0.5, "booster": "gbtree", "tree_method": "hist", "max_bin": 256,
        "grow_policy": "depthwise", "max_leaves": 0, "n_estimators": spec.trees, "max_depth": spec.depth,
        "learning_rate": spec.learning_rate, "min_child_weight": 1.0, "gamma": 0.0, "subsample": 1.0, "colsample_bytree": 1.0,
        "reg_alpha": 0.0, "reg_lambda": 1.0, "max_delta_step": 0.0, "scale_pos_weight": 1.0, "random_state": spec.seed,
    }


def fit_local(spec: ModelSpec, x: np.ndarray[Any, Any], label: np.ndarray[Any, Any]) -> Any:
    """A fitted ``XGBClassifier``; ``x`` float32[n, F] with NaN for null, ``label`` 0 or 1. Same rows in, same trees out."""
    from xgboost import XGBClassifier

    return XGBClassifier(**recipe(spec), missing=np.nan, n_jobs=os.cpu_count(), verbosity=0).fit(x, label)


def fit_spark(spec: ModelSpec, spark: Any, files: list[str], start_ms: int, end_ms: int) -> Any:
    """The same from Parquet files too large for one process: rows with a label and start_ms <= event time < end_ms.

    Returns an ``XGBClassifier`` with the trees that Spark's workers grew together.
    """
    from pyspark.sql import functions as f
    from xgboost import XGBClassifier
    from xgboost.spark import SparkXGBClassifier

    features = list(spec.service.feature_names)
    rows = spark.read.parquet(*files).where(f.col("event_time").between(start_ms, end_ms - 1) & f.col("label").isNotNull())
    rows = rows.select(f.col("label").cast("int").alias("label"), *(f.col(name).cast("float").alias(name) for name in features))
    workers = max(1, spark.sparkContext.defaultParallelism)
    stated = {name: value for name, value in recipe(spec).items() if name != "objective"}  # it sets this one and takes no other
    logging.getLogger("XGBoost-PySpark").setLevel(logging.WARNING)
    estimator = SparkXGBClassifier(**stated, missing=float("nan"), verbosity=0, verbose=False, features_col=features, label_col="label",
                                   num_workers=workers)
    fitted = XGBClassifier()
    fitted.load_model(bytearray(estimator.fit(rows).get_booster().save_raw("json")))
    fitted.get_booster().feature_names = None  # the exporter wants f0, f1, ...
    return fitted


def to_onnx(fitted: Any, width: int, name: str) -> bytes:
    """The ONNX form: a matrix ``input`` float32[n, width] to ``probabilities`` float32[n, 2]. Raises JobError if there is none."""
    from onnxmltools import convert_xgboost
    from onnxmltools.convert.common.data_types import FloatTensorType

    try:
        converted = convert_xgboost(fitted, name=name, initial_types=[(INPUT, FloatTensorType([None, width]))])
        _add_counts(converted.graph.node[0], fitted.get_booster())
        data: bytes = converted.SerializeToString()
    except Exception as error:  # the converter raises whatever it trips over
        raise JobError(f"the trees cannot be written as ONNX: {error}", hint="are xgboost and onnxmltools the locked versions?") from error
    return data


def _add_counts(node: Any, booster: Any) -> None:
    """Say at each node of the trees how many rows (weighted: XGBoost's cover) met it when they were grown; explaining needs it.

    The converter writes nodes from the root down, yes before no as the dump has them, and leaves the optional counts out.
    """
    from onnx import helper

    counts: list[float] = []
    open_ = [json.loads(tree) for tree in reversed(booster.get_dump(with_stats=True, dump_format="json"))]
    while open_:
        met = open_.pop()
        counts.append(float(met["cover"]))
        open_ += reversed(met.get("children", []))
    node.attribute.append(helper.make_attribute("nodes_hitrates", counts))
