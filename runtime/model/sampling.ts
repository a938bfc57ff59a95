// Choosing the next token from logits: greedily, or at random by temperature, top-k and top-p, the same way on every rank and machine.
import { ArgumentError, checkInteger, invalidArgument } from '../core/errors.ts'
import { Descending } from './descending.ts'
import { expNegative } from './exp.ts'
import { uniform } from './threefry.ts'

export interface SamplerOptions {
  /** 0 takes the likeliest token; above, logits are divided by it. */
  temperature?: number
  /** Only the k likeliest tokens are drawn from; 0 stands for all. */
  topK?: number
  /** Only the smallest set of tokens whose probability reaches this is drawn from, in (0, 1]; applied after `topK`. */
  topP?: number
  /** A non-negative safe integer. Draw number i depends on the seed, on i and on the logits, and on nothing else. */
  seed?: number
}

/** Draws one token after another. Ranks that hold the same logits and options draw the same tokens. */
export class Sampler {
  readonly #temperature: number
  readonly #topK: number
  readonly #topP: number
  readonly #seed: number
  #draws = 0

  constructor(options: SamplerOptions = {}) {
    const { temperature = 0, topK = 0, topP = 1, seed = 0 } = options
    if (typeof temperature !== 'number' || !(temperature >= 0 && temperature < Number.POSITIVE_INFINITY)) {
      throw invalidArgument('temperature', 'a finite number of at least 0', temperature)
    }
    checkInteger('topK', topK, 0)
    if (typeof topP !== 'number' || !(topP > 0 && topP <= 1)) throw invalidArgument('topP', 'a number in (0, 1]', topP)
    checkInteger('seed', seed, 0)
    this.#temperature = temperature
    this.#topK = topK
    this.#topP = topP
    this.#seed = seed
  }

  /**
   * A token id for `logits` [vocab]. -Infinity rules a token out. Throws ERR_ARGUMENT on NaN, +Infinity and where every token is ruled out.
   * Equal logits count in order of their index.
   */
  next(logits: Float32Array): number {
    const best = likeliest(logits)
    if (this.#temperature === 0) return best
    const weight = (i: number) => expNegative(((logits[i] as number) - (logits[best] as number)) / this.#temperature)
    const u = uniform(this.#seed, this.#draws++)
    const count = this.#topK === 0 ? logits.length : Math.min(this.#topK, logits.length)
    if (count === logits.length && this.#topP === 1) return draw(weightsInOrder(count, weight), u, count)

    const order = new Descending(logits)
    const ids: number[] = [] // the likeliest so far, and what each weighs
    const weights: number[] = []
    const take = () => weights.push(weight(ids[ids.push(order.pop()) - 1] as number))
    if (count < logits.length) while (ids.length < count) take()
    const enough = this.#topP * (count < logits.length ? sum(weights, count) : sum(weightsInOrder(count, weight), count))
    let kept = 0
    for (let mass = 0; kept < count && mass < enough; kept++) {
      if (kept === ids.length) take()
      mass += weights[kept] as number
    }
    return ids[draw(weights, u, kept)] as number
  }
}

function weightsInOrder(count: number, weight: (i: number) => number): Float64Array {
  const weights = new Float64Array(count)
  for (let i = 0; i < count; i++) weights[i] = weight(i)
  return weights
}

function sum(values: ArrayLike<number>, count: number): number {
  let total = 0
  for (let i = 0; i < count; i++) total += values[i] as number
  return total
}

/** Index of the largest logit, the lowest among equals; checks them all. */
function likeliest(logits: Float32Array): number {
  let best = 0
  for (let i = 0; i < logits.length; i++) {
    const x = logits[i] as number
    if (!(x < Number.POSITIVE_INFINITY)) {
      throw new ArgumentError(
        `Expected logits below +Infinity but received ${x} at index ${i}; the forward pass overflowed or its weights are damaged`,
      )
    }
    if (x > (logits[best] as number)) best = i
  }
  if (!((logits[best] as number) > Number.NEGATIVE_INFINITY)) {
    throw new ArgumentError(`Expected a finite logit but received ${logits.length} that are all -Infinity; every token is ruled out`)
  }
  return best
}

/** Index drawn in proportion to the first `count` weights: the first whose running sum exceeds `u` of the whole. */
function draw(weights: ArrayLike<number>, u: number, count: number): number {
  const target = u * sum(weights, count)
  let running = 0
  let last = 0
  for (let i = 0; i < count; i++) {
    if (weights[i] === 0) continue
    last = i
    running += weights[i] as number
    if (running > target) break
  }
  return last
}
