// What parts of a model cost the rank that holds them: bytes of memory, and seconds of each token.
import { type DType, dtypeSize } from '../core/dtype.ts'
import { checkInteger, invalidArgument } from '../core/errors.ts'
import type { LayerShard, ModelShape, RankShard } from './plan.ts'

/** What the matrices of a model are stored as. */
export interface MatrixTypes {
  readonly layers: readonly Readonly<Record<LayerMatrix, DType>>[]
  readonly embedding: DType
  /** The embedding's where they are tied. */
  readonly head: DType
}

export type LayerMatrix = 'q' | 'k' | 'v' | 'o' | 'gate' | 'up' | 'down'

/** How fast a rank is, measured. */
export interface RankSpeed {
  /** Weights that it multiplies with one token in a second. */
  readonly bytesPerSecond: number
  /** Seconds that a layer's attention or its MLP takes at least, however little of it the rank holds. Defaults to 0. */
  readonly overhead?: number
}

export type Component = 'attention' | 'mlp' | 'vocab'

export class Costs {
  readonly #shape: ModelShape
  /** Bytes of one weight. */
  readonly #layers: readonly Readonly<Record<LayerMatrix, number>>[]
  readonly #embedding: number
  readonly #head: number
  readonly #capacity: number

  /** `types`: of each matrix, or bytes of a weight for all. */
  constructor(shape: ModelShape, types: MatrixTypes | number, capacity: number) {
    const size = (dtype: DType): number => dtypeSize(dtype)
    this.#shape = shape
    this.#capacity = capacity
    if (typeof types === 'number') {
      const one = { q: types, k: types, v: types, o: types, gate: types, up: types, down: types }
      this.#layers = Array.from({ length: shape.layers }, () => one)
      this.#embedding = this.#head = types
    } else {
      this.#layers = types.layers.map(
        ({ q, k, v, o, gate, up, down }) =>
          ({ q: size(q), k: size(k), v: size(v), o: size(o), gate: size(gate), up: size(up), down: size(down) }) as const,
      )
      this.#embedding = size(types.embedding)
      this.#head = size(types.head)
    }
  }

  /** Bytes of a rank's matrices. */
  weights(shard: RankShard): number {
    const { hiddenSize, tieEmbeddings } = this.#shape
    const layers = shard.layers.reduce((n, own, layer) => n + this.#attention(own, layer) + this.#mlp(own, layer), 0)
    return layers + hiddenSize * shard.vocab.count * (tieEmbeddings ? this.#head : this.#embedding + this.#head)
  }

  /** Bytes of a rank's matrices and key-value cache, and of what every rank needs. */
  bytes(shard: RankShard): number {
    const cached = shard.layers.reduce((n, { kvHeads }) => n + 2 * kvHeads.count * this.#shape.headDim, 0)
    return this.weights(shard) + cached * this.#capacity * 4 + this.fixed
  }

  /** Bytes that every rank needs, whatever it holds: norms and the table of rotations, float32. */
  get fixed(): number {
    const { layers, hiddenSize, headDim } = this.#shape
    return 4 * ((2 * layers + 1) * hiddenSize + this.#capacity * headDim)
  }

  /** Seconds that a component takes one rank for one token: in each layer, or for the vocabulary once. */
  seconds(component: Component, { layers, vocab }: RankShard, { bytesPerSecond, overhead = 0 }: RankSpeed): number[] {
    const time = (bytes: number): number => (bytes === 0 ? 0 : overhead + bytes / bytesPerSecond)
    if (component === 'vocab') return [time(this.#shape.hiddenSize * vocab.count * this.#head)]
    const bytes = (own: LayerShard, layer: number): number =>
      component === 'attention' ? this.#attention(own, layer) : this.#mlp(own, layer)
    return layers.map((own, layer) => time(bytes(own, layer)))
  }

  #attention({ heads, kvHeads }: LayerShard, layer: number): number {
    const { hiddenSize, headDim } = this.#shape
    const { q, k, v, o } = this.#layers[layer] as Record<LayerMatrix, number>
    return hiddenSize * headDim * (heads.count * (q + o) + kvHeads.count * (k + v))
  }

  #mlp({ mlp }: LayerShard, layer: number): number {
    const { gate, up, down } = this.#layers[layer] as Record<LayerMatrix, number>
    return this.#shape.hiddenSize * mlp.count * (gate + up + down)
  }
}

/** Seconds of one token in a component: in each layer as many as the slowest rank takes. */
export function slowest(costs: Costs, component: Component, ranks: readonly RankShard[], speeds: readonly RankSpeed[]): number {
  const all = ranks.map((shard, rank) => costs.seconds(component, shard, speeds[rank] as RankSpeed))
  return (all[0] as number[]).reduce((n, _, layer) => n + Math.max(...all.map((layers) => layers[layer] as number)), 0)
}

/** @throws ERR_ARGUMENT unless there is a speed above 0 for each rank. */
export function checkSpeeds(speeds: readonly RankSpeed[], ranks: number): void {
  checkInteger('the number of speeds', speeds.length, ranks, ranks)
  for (const [rank, { bytesPerSecond, overhead = 0 }] of speeds.entries()) {
    if (!(Number.isFinite(bytesPerSecond) && bytesPerSecond > 0))
      throw invalidArgument(`speeds[${rank}].bytesPerSecond`, 'a finite number above 0', bytesPerSecond)
    if (!(Number.isFinite(overhead) && overhead >= 0))
      throw invalidArgument(`speeds[${rank}].overhead`, 'a finite number of at least 0', overhead)
  }
}
