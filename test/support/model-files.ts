// Model folders made in memory: files from bytes or text, safetensors files from tensors or from a header written by hand.
import { ModelFormatError } from '../../runtime/core/errors.ts'
import type { ByteSource, ModelFolder } from '../../runtime/model/source.ts'
import { checkFileName, checkRange, readText } from '../../runtime/model/source.ts'

export type Files = Record<string, Uint8Array | string>

/** A folder that counts what is read, opened and closed. */
export interface MemoryFolder extends ModelFolder {
  reads: { file: string; offset: number; length: number }[]
  opened: string[]
  openNow: number
}

/** A folder of `files`; one that holds `model.gguf` is that model. */
export function memoryFolder(files: Files, mergeGap?: number): MemoryFolder {
  const bytesOf = (file: string) => (Object.hasOwn(files, file) ? toBytes(files[file] as Uint8Array | string) : null)
  const folder: MemoryFolder = {
    name: 'memory',
    ...(Object.hasOwn(files, 'model.gguf') && { gguf: 'model.gguf' }),
    reads: [],
    opened: [],
    openNow: 0,
    async open(file) {
      checkFileName('memory', file)
      const bytes = bytesOf(file)
      if (!bytes) throw new ModelFormatError(`memory holds no file ${file}`)
      folder.opened.push(file)
      folder.openNow++
      const source: ByteSource = {
        name: file,
        ...(mergeGap === undefined ? {} : { mergeGap }),
        size: async () => bytes.length,
        read: async (offset, length) => {
          checkRange(file, bytes.length, offset, length)
          folder.reads.push({ file, offset, length })
          return new Uint8Array(bytes.slice(offset, offset + length))
        },
        close: async () => {
          folder.openNow--
        },
      }
      return source
    },
    text: async (file) => readText(await folder.open(file)),
    exists: async (file) => {
      checkFileName('memory', file)
      return bytesOf(file) !== null
    },
  }
  return folder
}

function toBytes(content: Uint8Array | string): Uint8Array {
  return typeof content === 'string' ? new TextEncoder().encode(content) : content
}

/** A safetensors file of a header as given and of data. */
export function safetensors(header: string | Uint8Array | object, data: Uint8Array = new Uint8Array(0)): Uint8Array<ArrayBuffer> {
  const plain = typeof header === 'object' && !(header instanceof Uint8Array)
  const head = toBytes(plain ? JSON.stringify(header) : (header as string | Uint8Array))
  const out = new Uint8Array(8 + head.length + data.length)
  new DataView(out.buffer).setBigUint64(0, BigInt(head.length), true)
  out.set(head, 8)
  out.set(data, 8 + head.length)
  return out
}

export interface RawTensor {
  /** As the format spells it, e.g. 'F32'. */
  dtype: string
  shape: number[]
  bytes: Uint8Array
}

/** A well-formed safetensors file. */
export function safetensorsOf(tensors: Record<string, RawTensor>): Uint8Array<ArrayBuffer> {
  const header: Record<string, unknown> = { __metadata__: { format: 'pt' } }
  let end = 0
  for (const [name, { dtype, shape, bytes }] of Object.entries(tensors)) {
    header[name] = { dtype, shape, data_offsets: [end, end + bytes.length] }
    end += bytes.length
  }
  const data = new Uint8Array(end)
  let at = 0
  for (const { bytes } of Object.values(tensors)) {
    data.set(bytes, at)
    at += bytes.length
  }
  return safetensors(header, data)
}

/** The fixtures' tokenizers have one token per byte; this gives its id. Bytes that can be printed come first there, in their order. */
export function byteIds(bytes: Iterable<number>): number[] {
  return Array.from(bytes, (byte) => BYTE_ORDER.indexOf(byte))
}

const printable = (byte: number) => (byte > 32 && byte < 127) || (byte > 160 && byte !== 173)
const ALL_BYTES = Array.from({ length: 256 }, (_, i) => i)
const BYTE_ORDER = [...ALL_BYTES.filter(printable), ...ALL_BYTES.filter((byte) => !printable(byte))]
