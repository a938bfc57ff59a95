// Rotary position embedding: its settings in config.json and the frequencies they stand for.
import { badConfig, integer, number } from './config-fields.ts'
import { isObject, type JsonObject, own } from './json.ts'

/** How the frequencies are stretched for contexts longer than the model was first trained on. */
export type RopeScaling =
  | { readonly type: 'linear'; readonly factor: number }
  | {
      readonly type: 'llama3'
      readonly factor: number
      readonly lowFreqFactor: number
      readonly highFreqFactor: number
      readonly originalMaxPosition: number
    }
  /** What each pair's frequency is divided by: how GGUF files keep scalings that are fixed. */
  | { readonly type: 'divisors'; readonly divisors: readonly number[] }

export interface RopeSettings {
  /** Even. */
  readonly headDim: number
  readonly ropeTheta: number
  readonly ropeScaling: RopeScaling | null
}

const DEFAULT_THETA = 10_000

/**
 * Reads `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` (transformers 4). Throws ERR_MODEL_FORMAT on scalings that
 * are not read (yarn, dynamic, longrope, ...).
 */
export function parseRope(json: JsonObject): { theta: number; scaling: RopeScaling | null } {
  const key = (own(json, 'rope_parameters') ?? null) === null ? 'rope_scaling' : 'rope_parameters'
  const settings = own(json, key) ?? {}
  if (!isObject(settings)) throw badConfig(key, 'an object or null', settings)
  if (Object.values(settings).some(isObject)) throw badConfig(key, 'one set of values for all layers', settings)
  for (const holder of [json, settings]) {
    const partial = own(holder, 'partial_rotary_factor') ?? 1
    if (partial !== 1) throw badConfig('partial_rotary_factor', '1', partial)
  }
  const holder = (own(settings, 'rope_theta') ?? null) === null ? json : settings
  const theta = number(holder, 'rope_theta', (x) => x > 1, 'a number above 1', DEFAULT_THETA)
  return { theta, scaling: parseScaling(key, settings) }
}

function parseScaling(key: string, settings: JsonObject): RopeScaling | null {
  const type = own(settings, 'rope_type') ?? own(settings, 'type') ?? 'default'
  if (type === 'default') return null
  if (type !== 'linear' && type !== 'llama3') throw badConfig(`rope_type in ${key}`, '"default", "linear" or "llama3"', type)
  const factor = number(settings, 'factor', (x) => x >= 1, 'a number of at least 1')
  if (type === 'linear') return { type, factor }
  const lowFreqFactor = number(settings, 'low_freq_factor', (x) => x > 0, 'a number above 0')
  return {
    type,
    factor,
    lowFreqFactor,
    highFreqFactor: number(settings, 'high_freq_factor', (x) => x > lowFreqFactor, `a number above low_freq_factor (${lowFreqFactor})`),
    originalMaxPosition: integer(settings, 'original_max_position_embeddings', 1, 2 ** 31),
  }
}

/** Radians per position of the `headDim / 2` pairs: pair i turns by `theta ** (-2i / headDim)`, scaled as the settings say. */
export function ropeFrequencies(settings: RopeSettings): Float64Array {
  const { headDim, ropeTheta, ropeScaling } = settings
  return Float64Array.from({ length: headDim / 2 }, (_, i) => scaleFrequency(ropeTheta ** ((-2 * i) / headDim), i, ropeScaling))
}

function scaleFrequency(frequency: number, pair: number, scaling: RopeScaling | null): number {
  if (scaling === null) return frequency
  if (scaling.type === 'linear') return frequency / scaling.factor
  if (scaling.type === 'divisors') return frequency / (scaling.divisors[pair] as number)
  // Llama 3.1: pairs that turn often within the original context keep their pace, those that turn seldom slow down by the factor, and
  // between the two the pace is blended linearly in the number of turns.
  const { factor, lowFreqFactor, highFreqFactor, originalMaxPosition } = scaling
  const turns = (originalMaxPosition * frequency) / (2 * Math.PI)
  const keep = Math.min(1, Math.max(0, (turns - lowFreqFactor) / (highFreqFactor - lowFreqFactor)))
  return keep * frequency + (1 - keep) * (frequency / factor)
}
