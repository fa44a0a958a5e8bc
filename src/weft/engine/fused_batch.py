"""Batches for the fused attention (CUDA, 16-bit types)."""

from __future__ import annotations

import numpy as np
import torch

from weft.engine.batch import RequestTables, to_device, token_ids_of
from weft.engine.graph_inputs import RowTensors
from weft.engine.step import Step, context_slots
from weft.layers.fused.decode_attention import DecodeWorkspace
from weft.layers.fused_attention import Decodes, FusedAttention, PagedAttention, Prompts
from weft.layers.rope import RotaryTable
from weft.models.decoder import Batch


class FusedBatches:
    """Makes batches from step step, or from buffers that a graph reads."""

    def __init__(self, rope: RotaryTable, workspace: DecodeWorkspace, *, block_size: int) -> None:
        self._cos_sin, self._workspace, self._block_size = rope.halves(), workspace, block_size

    def build(self, step: Step, tables: RequestTables) -> Batch:
        device, count = tables.last_ids.device, step.num_decodes
        decodes = None
        if count:
            rows, lengths = to_device(device, step.rows[:count], step.context_lengths[:count])
            decodes = Decodes(rows=rows.int(), lengths=lengths.int())
        (logit_rows,) = to_device(device, step.logit_rows)
        return Batch(
            token_ids=token_ids_of(step, tables),
            logit_rows=logit_rows,
            attention=self._attention(tables, decodes, self._prompts(step, device)),
        )

    def of_rows(self, rows: RowTensors, tables: RequestTables) -> Batch:
        """A step of prompts and decodes whose rows are described on the device."""
        assert tables.blocks is not None
        last = tables.last_ids[rows.fed_rows.clamp(min=0)]
        return Batch(
            token_ids=torch.where(rows.fed_rows >= 0, last, rows.token_ids),
            logit_rows=None,
            attention=PagedAttention(
                cos_sin=self._cos_sin,
                table=tables.blocks,
                block_size=self._block_size,
                positions=rows.positions,
                slots=rows.slots,
                pieces=rows.pieces,
            ),
        )

    def of_decodes(
        self,
        token_ids: torch.Tensor,
        rows: torch.Tensor,
        lengths: torch.Tensor,
        tables: RequestTables,
    ) -> Batch:
        """A decode step of B sequences whose rows and lengths [B] int32 lie on the device."""
        decodes = Decodes(rows=rows, lengths=lengths)
        return Batch(
            token_ids=token_ids,
            logit_rows=None,
            attention=self._attention(tables, decodes, None),
        )

    def _attention(
        self, tables: RequestTables, decodes: Decodes | None, prompts: Prompts | None
    ) -> FusedAttention:
        assert tables.blocks is not None
        return FusedAttention(
            cos_sin=self._cos_sin,
            table=tables.blocks,
            workspace=self._workspace,
            block_size=self._block_size,
            decodes=decodes,
            prompts=prompts,
        )

    def _prompts(self, step: Step, device: torch.device) -> Prompts | None:
        count = step.num_decodes
        if count == step.num_tokens:
            return None
        context_lengths = step.context_lengths[count:].tolist()
        query_lengths = step.query_lengths[count:].tolist()
        ends = [np.cumsum([0, *lengths]) for lengths in (query_lengths, context_lengths)]
        arrays = [step.positions[count:], step.slots(self._block_size)[count:], *ends]
        if context_lengths != query_lengths:
            pasts = zip(step.blocks[count:], context_lengths, strict=True)
            arrays.append(np.concatenate([context_slots(b, n, self._block_size) for b, n in pasts]))
        tensors = to_device(device, *arrays)
        return Prompts(
            positions=tensors[0],
            slots=tensors[1],
            query_ends=tensors[2].int(),
            context_ends=tensors[3].int(),
            query_lengths=query_lengths,
            context_lengths=context_lengths,
            context_slots=tensors[4] if len(tensors) > 4 else None,
        )
