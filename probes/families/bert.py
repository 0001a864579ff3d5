"""Encoders of text: BERT and its kin (Devlin et al. 2019), DistilBERT, ModernBERT (with rotary positions)."""

from __future__ import annotations

from probes.families._layers import Family, Layout

_BERT = Layout(
    classes=r"(Bert|Roberta|XLMRoberta|Camembert|Electra|Data2VecText|Ernie)Layer",
    attention="attention.self",
    query="attention.self.query",
    key="attention.self.key",
    value="attention.self.value",
    out="attention.output.dense",
    up=("intermediate.dense",),
    down="output.dense",
    stream=("attention.output.LayerNorm", "output.LayerNorm"),
)
_ALBERT = Layout(
    classes="AlbertLayer",
    attention="attention",
    query="attention.query",
    key="attention.key",
    value="attention.value",
    out="attention.dense",
    up=("ffn",),
    down="ffn_output",
    stream=("attention.LayerNorm", "full_layer_layer_norm"),
)
_DISTILBERT = Layout(
    classes="TransformerBlock",
    attention="attention",
    query="attention.q_lin",
    key="attention.k_lin",
    value="attention.v_lin",
    out="attention.out_lin",
    up=("ffn.lin1",),
    down="ffn.lin2",
    stream=("sa_layer_norm", "output_layer_norm"),
)
_EMBEDDINGS = ("word_embeddings", "position_embeddings", "token_type_embeddings", "task_type_embeddings", "LayerNorm")

_MODERNBERT = Layout(
    classes="ModernBertEncoderLayer",
    attention="attn",
    query="attn.Wqkv",
    fused="blocks",
    out="attn.Wo",
    up=("mlp.Wi",),
    down="mlp.Wo",
    stream=("attn_norm", "mlp_norm"),
    rotary=True,
)
MODERNBERT = Family(
    title="ModernBERT",
    layouts=(_MODERNBERT,),
    places={
        "embeddings.tok_embeddings": ("", "stream"),
        "embeddings.norm": ("", "stream"),
        "final_norm": ("", "stream"),
        "head.dense": ("stream", "pooler"),
        "head.norm": ("", "pooler"),
        "classifier": ("pooler", ""),
    },
    titles={"ModernBert": "ModernBERT"},
)
BERT = Family(
    title="BERT",
    layouts=(_BERT, _ALBERT, _DISTILBERT),
    places={
        "embeddings_project": ("embedding", "stream"),
        "embedding_hidden_mapping_in": ("embedding", "stream"),
        **{f"embeddings.{each}": ("", "embedding|stream") for each in _EMBEDDINGS},
        "pooler.dense": ("stream", "pooler"),
        "pooler": ("stream", "pooler"),
        "pre_classifier": ("stream", "pooler"),
        "classifier.dense": ("stream", "pooler"),
        "classifier": ("pooler|stream", ""),
        "classifier.out_proj": ("pooler", ""),
        "cls.predictions.transform.dense": ("stream", "transform"),
        "cls.predictions.transform.LayerNorm": ("", "transform"),
        "cls.predictions.decoder": ("transform", ""),
        "cls.predictions.bias": ("", ""),
        "lm_head.dense": ("stream", "transform"),
        "lm_head.layer_norm": ("", "transform"),
        "lm_head.decoder": ("transform", ""),
        "lm_head.bias": ("", ""),
        "generator_predictions.dense": ("stream", "transform"),
        "generator_predictions.LayerNorm": ("", "transform"),
        "generator_lm_head": ("transform", ""),
    },
    titles={
        "Bert": "BERT", "Roberta": "RoBERTa", "XLMRoberta": "XLM-RoBERTa", "Camembert": "CamemBERT",
        "Electra": "ELECTRA", "Albert": "ALBERT", "Transformer": "DistilBERT",
    },
)  # fmt: skip
