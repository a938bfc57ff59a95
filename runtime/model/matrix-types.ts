// What the matrices of a Llama are stored as, by their names: what a shard plan needs to cut between blocks and to count bytes.
import { ModelFormatError } from '../core/errors.ts'
import type { LayerMatrix, MatrixTypes } from '../scheduler/costs.ts'
import type { LlamaConfig } from './config.ts'
import type { Weights } from './named-tensors.ts'
import { MATRIX_TYPES } from './shards.ts'

export const EMBEDDING = 'model.embed_tokens.weight'
const HEAD = 'lm_head.weight'

const NAMES: Readonly<Record<LayerMatrix, string>> = {
  q: 'self_attn.q_proj',
  k: 'self_attn.k_proj',
  v: 'self_attn.v_proj',
  o: 'self_attn.o_proj',
  gate: 'mlp.gate_proj',
  up: 'mlp.up_proj',
  down: 'mlp.down_proj',
}

/** Reads headers alone. @throws ERR_MODEL_FORMAT naming a tensor that is not there, or of a type that matrices cannot have. */
export async function matrixTypes({ layers, tieEmbeddings }: LlamaConfig, weights: Weights): Promise<MatrixTypes> {
  const typeOf = async (name: string) => (await weights.info(name, { dtype: MATRIX_TYPES })).dtype
  const layer = async (index: number): Promise<MatrixTypes['layers'][number]> => {
    const of = (matrix: LayerMatrix) => typeOf(matrixName(index, matrix))
    return {
      q: await of('q'),
      k: await of('k'),
      v: await of('v'),
      o: await of('o'),
      gate: await of('gate'),
      up: await of('up'),
      down: await of('down'),
    }
  }
  const all: MatrixTypes['layers'][number][] = []
  for (let i = 0; i < layers; i++) all.push(await layer(i))
  const embedding = await typeOf(EMBEDDING)
  return { layers: all, embedding, head: tieEmbeddings ? embedding : await typeOf(headName(weights)) }
}

export function matrixName(layer: number, matrix: LayerMatrix): string {
  return `model.layers.${layer}.${NAMES[matrix]}.weight`
}

/** @throws ERR_MODEL_FORMAT where there is none. */
export function headName(weights: Weights): string {
  if (!weights.has(HEAD)) {
    throw new ModelFormatError(
      `The weights hold no tensor "${HEAD}", and config.json does not tie it to the embedding (tie_word_embeddings)`,
    )
  }
  return HEAD
}
