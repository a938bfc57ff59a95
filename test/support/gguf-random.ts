// Random GGUF files that are sound: all kinds of values, all types of tensors that are read.
import { GGMLQuantizationType } from '@huggingface/gguf'
import { BLOCK_FORMATS, type BlockType } from '../../runtime/core/blocks.ts'
import { ggufFile, type RawGguf, type RawGgufTensor, type RawValue } from './gguf-files.ts'
import type { Random } from './random.ts'

const NUMBERS = [0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12]

/** Up to 11 characters, some of which are easily mistaken; never U+FEFF first. */
export function randomText(random: Random): string {
  const alphabet = ['a', 'b', '\u2581', '\n', 'é', '你', '𝒳', '\0', '\ufeff']
  return Array.from({ length: random.int(12) }, (_, i) => alphabet[random.int(i ? 9 : 8)]).join('')
}

function randomScalar(random: Random, type: number): unknown {
  const long = (BigInt(random.bits()) << 32n) | BigInt(random.bits())
  if (type === 6 || type === 12)
    return [random.normal() * 10 ** (random.int(40) - 20), Number.NaN, -0, Infinity][Math.max(0, random.int(20) - 16)]
  if (type === 7) return [0, 1, 255][random.int(3)]
  if (type === 8) return randomText(random)
  if (type === 10) return random.int(2) ? long : BigInt(random.int(100))
  if (type === 11) return random.int(2) ? BigInt.asIntN(64, long) : BigInt(-random.int(100))
  return random.bits()
}

function randomValue(random: Random): RawValue {
  const type = [...NUMBERS, 8][random.int(12)] as number
  if (random.int(2)) return [type, randomScalar(random, type)]
  return [9, [type, Array.from({ length: random.int(9) }, () => randomScalar(random, type))]]
}

/** Up to 11 tensors of all types that are read, at places in another order than their names, with gaps. */
export function randomTensors(random: Random, alignment: number): RawGgufTensor[] {
  const types = Object.keys(BLOCK_FORMATS) as BlockType[]
  const tensors = Array.from({ length: random.int(12) }, (_, i): RawGgufTensor => {
    const type = types[random.int(types.length)] as BlockType
    const { values, bytes } = BLOCK_FORMATS[type]
    const dims = [(1 + random.int(3)) * values, ...Array.from({ length: random.int(4) }, () => 1 + random.int(4))]
    const length = (dims.reduce((n, m) => n * m) / values) * bytes
    return { name: `${i}${randomText(random)}`, dims, type: GGMLQuantizationType[type], bytes: new Uint8Array(length + random.int(100)) }
  })
  const places = tensors.map((tensor) => ({ tensor, key: random.uniform() })).sort((a, b) => a.key - b.key)
  let end = 0
  for (const { tensor } of places) {
    tensor.offset = end
    end += Math.ceil(tensor.bytes.length / alignment) * alignment
  }
  return tensors
}

/** A sound file of version 2 or 3 with all kinds of values; `alignment` is a power of two. */
export function randomFile(random: Random, alignment: number): Uint8Array<ArrayBuffer> {
  const metadata: RawGguf['metadata'] = Array.from({ length: random.int(20) }, (_, i) => [
    `${i}.${randomText(random)}`,
    randomValue(random),
  ])
  const given: RawValue = [[2, 4, 5, 10][random.int(4)] as number, alignment]
  if (alignment !== 32 || random.int(2)) metadata.splice(random.int(metadata.length + 1), 0, ['general.alignment', given])
  return ggufFile({ version: 2 + random.int(2), metadata, tensors: randomTensors(random, alignment), alignment })
}
