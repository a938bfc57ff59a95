// Where model files come from: ranged reads of named files, so that the readers above work alike on a disk, over HTTP and in tests.
import { ModelFormatError, OutOfMemoryError } from '../core/errors.ts'
import { show } from './json.ts'

/** One open file, read by ranges. Offsets and lengths are bytes. */
export interface ByteSource {
  /** What errors call the file. */
  readonly name: string
  /**
   * Two wanted ranges that lie at most this many bytes apart are cheaper to read as one than as two. Absent: 4096.
   */
  readonly mergeGap?: number
  size(): Promise<number>
  /** Exactly `length` bytes from `offset`, in memory of their own; ERR_MODEL_FORMAT when the file is shorter. */
  read(offset: number, length: number): Promise<Uint8Array<ArrayBuffer>>
  close(): Promise<void>
}

/** A model folder: config.json, tokenizer.json, *.safetensors; or one GGUF file. File names are plain names, never paths. */
export interface ModelFolder {
  /** What errors call the folder. */
  readonly name: string
  /** The GGUF file that is the whole model; nothing else in the folder is then looked at. */
  readonly gguf?: string
  /** ERR_MODEL_FORMAT when there is no such file or the name is not a plain file name. */
  open(file: string): Promise<ByteSource>
  /** A whole file as UTF-8 text, at most 256 MB. */
  text(file: string): Promise<string>
  exists(file: string): Promise<boolean>
}

/** A path or an address, as its folder and, where it names a GGUF file, that file's name. */
export function splitPath(path: string): { folder: string; gguf?: string } {
  const [, folder, gguf] = /^(.*[/\\])?([^/\\]+\.gguf)$/i.exec(path) ?? []
  return gguf === undefined ? { folder: path } : { folder: folder ?? '.', gguf }
}

const MAX_TEXT_BYTES = 256_000_000

/** Refuses every name that could leave the folder: shard names come from an index file that anyone may have written. */
export function checkFileName(folder: string, file: string): void {
  // biome-ignore lint/suspicious/noControlCharactersInRegex: control characters are what is refused
  if (file === '' || file === '.' || file === '..' || /[/\\:\x00-\x1f]/.test(file)) {
    throw new ModelFormatError(`Expected the name of a file inside ${folder} but received ${show(file)}; paths are refused`)
  }
}

/** Refuses a range that does not lie inside a file of `size` bytes. */
export function checkRange(file: string, size: number, offset: number, length: number): void {
  const whole = Number.isSafeInteger(offset) && Number.isSafeInteger(length) && offset >= 0 && length >= 0
  if (!whole || offset + length > size) {
    throw new ModelFormatError(`Expected a range inside the ${size} bytes of ${file} but received ${length} bytes from ${offset}`)
  }
}

/** `length` zeroed bytes; ERR_OUT_OF_MEMORY where the machine has no such block. */
export function allocate(file: string, length: number): Uint8Array<ArrayBuffer> {
  try {
    return new Uint8Array(length)
  } catch (cause) {
    throw new OutOfMemoryError(`No memory for ${length} bytes of ${file}; read it in slices, or over more ranks`, { cause })
  }
}

/** Bytes as text; ERR_MODEL_FORMAT where they are not UTF-8. A byte order mark is dropped. */
export function decodeUtf8(file: string, bytes: Uint8Array): string {
  try {
    return new TextDecoder('utf-8', { fatal: true }).decode(bytes)
  } catch (cause) {
    throw new ModelFormatError(`${file} is not valid UTF-8; the file is damaged or not what its name says`, { cause })
  }
}

/** The whole of `source` as text; closes it. */
export async function readText(source: ByteSource): Promise<string> {
  try {
    const size = await source.size()
    if (size > MAX_TEXT_BYTES) {
      throw new ModelFormatError(`${source.name} has ${size} bytes; a text file of a model has at most ${MAX_TEXT_BYTES}`)
    }
    return decodeUtf8(source.name, await source.read(0, size))
  } finally {
    await source.close()
  }
}
