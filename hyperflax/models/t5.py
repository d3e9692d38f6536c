"""The T5 encoder-decoder in flax.linen, with the parameter names and shapes of T5X (Raffel et al. 2020).

`T5Config` chooses between T5 1.1 (gated GELU, separate output projection) and T5 1.0 (ReLU, tied). Layers are unrolled
modules `layers_0`, `layers_1`, ..., or one scan `layers` whose parameters are stacked on axis 1 (see `stacking.py`).
Adapters come in as a second collection and leave the frozen parameters alone:

>>> model = T5(config)
>>> frozen = model.init(jax.random.key(0), encoder_tokens, decoder_tokens)["params"]
>>> logits = model.apply({"params": frozen, "adapters": adapters}, encoder_tokens, decoder_tokens)

Everything is written for one task; `jax.vmap` over adapters and tokens adds the task axis. Token id 0 is padding, and
stands at the ends of rows.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax.numpy as jnp
from flax import linen as nn

from hyperflax.adapters.soft_prompt import prepend, prepend_mask
from hyperflax.errors import HyperflaxError
from hyperflax.models import masks
from hyperflax.models.layers import Embedding
from hyperflax.models.stacks import Context, Decoder, Encoder, LayerCache
from hyperflax.types import Array, T5Config


class T5(nn.Module):
    """Frozen base model and hypernetwork trunk alike."""

    config: T5Config

    def setup(self) -> None:
        self.token_embedder = Embedding(self.config)
        self.encoder = Encoder(self.config)
        self.decoder = Decoder(self.config)

    def __call__(
        self,
        encoder_input_tokens: Array,
        decoder_input_tokens: Array,
        decoder_target_tokens: Array | None = None,
        *,
        encoder_segment_ids: Array | None = None,
        decoder_segment_ids: Array | None = None,
        encoder_positions: Array | None = None,
        decoder_positions: Array | None = None,
        enable_dropout: bool = False,
    ) -> Array:
        """Teacher-forced logits.

        Args:
          encoder_input_tokens: int [batch, source].
          decoder_input_tokens: int [batch, length], the targets shifted right, 0 first.
          decoder_target_tokens: int [batch, length]; its padding is masked in the decoder. None: nothing is padding.
          encoder_segment_ids, decoder_segment_ids: of packed batches, both or neither.
          encoder_positions, decoder_positions: part of a packed batch; unused, as T5's biases are relative.
          enable_dropout: needs a `dropout` rng.

        Returns:
          float32 [batch, length, vocab].
        """
        del encoder_positions, decoder_positions
        encoded = self.encode(encoder_input_tokens, encoder_segment_ids, enable_dropout=enable_dropout)
        return self.decode(
            encoded,
            encoder_input_tokens,
            decoder_input_tokens,
            decoder_target_tokens,
            encoder_segment_ids=encoder_segment_ids,
            decoder_segment_ids=decoder_segment_ids,
            enable_dropout=enable_dropout,
        )

    def encode(self, tokens: Array, segment_ids: Array | None = None, *, enable_dropout: bool = False) -> Array:
        """Encodes int [batch, source] to [batch, prompt + source, emb] in the compute dtype; prompt = 0 without one."""
        _check_rank("encoder_input_tokens", tokens)
        real = self._real(tokens)
        mask = masks.pairs(real, real)
        if segment_ids is not None:
            if self.encoder.soft_prompt() is not None:
                raise HyperflaxError("encoder_segment_ids: a soft prompt stands before one input, got packed ones")
            mask = mask & masks.same_segment(segment_ids, segment_ids)
        x = prepend(self.token_embedder(tokens), self.encoder.soft_prompt())
        return self.encoder(x, mask, not enable_dropout, self._trailing(tokens, segment_ids))

    def decode(
        self,
        encoded: Array,
        encoder_input_tokens: Array,
        decoder_input_tokens: Array,
        decoder_target_tokens: Array | None = None,
        *,
        encoder_segment_ids: Array | None = None,
        decoder_segment_ids: Array | None = None,
        enable_dropout: bool = False,
    ) -> Array:
        """Logits float32 [rows, length, vocab] from what `encode` returned.

        The decoder may have several rows per encoded one (row r reads encoded row r // (rows / batch)), which costs no
        copy of `encoded`: options of one input are scored that way.
        """
        _check_rank("decoder_input_tokens", decoder_input_tokens)
        rows, length = decoder_input_tokens.shape
        batch = encoded.shape[0]
        if rows % batch or (rows != batch and encoder_segment_ids is not None):
            raise HyperflaxError(
                f"decoder_input_tokens: expected a multiple of the {batch} encoded rows (exactly those where packed), "
                f"got {rows} rows"
            )
        real = jnp.ones((rows, length), bool) if decoder_target_tokens is None else decoder_target_tokens > 0
        mask = masks.causal(length)
        if decoder_target_tokens is not None:
            mask = mask & masks.pairs(real, real)
        cross_mask = masks.pairs(real.reshape(batch, -1), self._real(encoder_input_tokens))
        if decoder_segment_ids is not None:
            mask = mask & masks.same_segment(decoder_segment_ids, decoder_segment_ids)
        if encoder_segment_ids is not None:
            if decoder_segment_ids is None:
                raise HyperflaxError("decoder_segment_ids: expected beside encoder_segment_ids, got None")
            cross_mask = cross_mask & masks.same_segment(decoder_segment_ids, encoder_segment_ids)
        context = Context(
            mask=mask,
            encoded=encoded,
            cross_mask=cross_mask,
            # A real token sees no padding that comes after it.
            trailing=masks.Trailing(causal=True) if decoder_segment_ids is None else None,
            cross_trailing=self._trailing(encoder_input_tokens, encoder_segment_ids),
            bias_kind="causal",
            deterministic=not enable_dropout,
        )
        return self._logits(self.decoder(self.token_embedder(decoder_input_tokens), context))

    def decode_embeddings(
        self,
        embeddings: Array,
        encoded: Array | Mapping[str, LayerCache],
        encoder_input_tokens: Array,
        *,
        bidirectional: bool = True,
        enable_dropout: bool = False,
    ) -> Array:
        """Runs the decoder over embeddings instead of tokens, as a hypernetwork does over its slots.

        Args:
          embeddings: [batch, slots, emb].
          encoded: [batch, source, emb]; several encoded rows may be laid end to end into one. Or what `read` made of
            it, which saves time where the decoder runs over the same source again.
          encoder_input_tokens: [batch, source], 0 where `encoded` is padding.
          bidirectional: position bias with T5's two-sided buckets, in the decoder's own table; otherwise none at all
            (one-sided buckets would put all later slots at distance 0).
          enable_dropout: needs a `dropout` rng.

        Returns:
          Hidden states [batch, slots, emb] after the decoder's final norm.
        """
        real = jnp.ones(embeddings.shape[:2], bool)
        caches = encoded if isinstance(encoded, Mapping) else None
        context = Context(
            encoded=None if isinstance(encoded, Mapping) else encoded,
            cross_mask=masks.pairs(real, self._real(encoder_input_tokens)),
            bias_kind="bidirectional" if bidirectional else "none",
            deterministic=not enable_dropout,
        )
        return self.decoder(jnp.asarray(embeddings, self.config.dtype), context, caches)

    def read(self, encoded: Array) -> dict[str, LayerCache]:
        """Computes every decoder layer's cross-attention keys and values of `encoded` [batch, source, emb]."""
        return self.decoder.start(Context(encoded=encoded))

    # Decoding with a cache; `decoding.py` is the loop around it.

    def start_cache(
        self, encoder_input_tokens: Array, *, length: int, decodes: int = 1, shared: bool = False
    ) -> dict[str, LayerCache]:
        """Encodes and makes the decoder's caches.

        Args:
          encoder_input_tokens: int [example, source].
          length: number of tokens that will be decoded at most.
          decodes: sequences decoded per example.
          shared: an example's decodes share one cache row, as beams do, and steps say who descends from whom.

        Returns:
          One cache per layer, keyed as the layers are: `{"self": {key, value}, "cross": {key, value}}`.
        """
        encoded = self.encode(encoder_input_tokens)
        examples = encoded.shape[0]
        rows, width = (examples, decodes) if shared else (examples * decodes, 1)
        return self.decoder.start(Context(encoded=encoded, length=length, rows=rows, width=width))

    def step(
        self,
        caches: dict[str, LayerCache],
        encoder_input_tokens: Array,
        tokens: Array,
        index: Array,
        *,
        length: int,
        place: Array | None = None,
        ancestors: Array | None = None,
    ) -> tuple[Array, dict[str, LayerCache]]:
        """Decodes one token of each sequence.

        Args:
          caches: from `start_cache`, with the `self` part that the last step returned.
          encoder_input_tokens: int [example, source], for its padding.
          tokens: int [example, decodes], the decoder's input at `index`.
          index: int32 scalar, one for all rows: the position of `tokens`.
          length: as given to `start_cache`.
          place: int32 scalar, the cache's place for `tokens`; None: `index`. Under `vmap` rows may have positions of
            their own and share the place, if each moves on by one, modulo `length`, with every step.
          ancestors: with shared rows, int32 [example, decodes, length], see `Attention.step_self`.

        Returns:
          Logits float32 [example, decodes, vocab], and the new `self` part of each layer's cache.
        """
        context = Context(
            cross_mask=self._real(encoder_input_tokens)[:, None, None, :],
            index=index,
            place=place,
            ancestors=ancestors,
            length=length,
            bias_kind="causal",
        )
        hidden, written = self.decoder.step(self.token_embedder(tokens), caches, context)
        return self._logits(hidden), written

    def _real(self, encoder_input_tokens: Array) -> Array:
        """Returns bool [batch, prompt + source]: which encoded positions are to be attended to."""
        return prepend_mask(encoder_input_tokens > 0, self.encoder.soft_prompt())

    def _trailing(self, encoder_input_tokens: Array, segment_ids: Array | None) -> masks.Trailing | None:
        """Returns how many encoded positions of each row are real; None where it is not the first of them that are."""
        if segment_ids is not None or self.encoder.soft_prompt() is not None:
            return None
        return masks.Trailing(masks.length(encoder_input_tokens > 0))

    def _logits(self, hidden: Array) -> Array:
        if self.config.logits_via_embedding:
            return self.token_embedder.attend(hidden)
        return self.decoder.logits(hidden)


def _check_rank(name: str, tokens: Array) -> None:
    if tokens.ndim != 2:
        raise HyperflaxError(
            f"{name}: expected [batch, length], got shape {tuple(tokens.shape)}; use jax.vmap to add a task axis"
        )
