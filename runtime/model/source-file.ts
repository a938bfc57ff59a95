// Model folders on a disk. Node only: `node:fs` is imported when a file is first touched, so that bundles for a browser stay whole.
import type { FileHandle } from 'node:fs/promises'
import { ModelFormatError } from '../core/errors.ts'
import { allocate, type ByteSource, checkFileName, checkRange, type ModelFolder, readText, splitPath } from './source.ts'

/** The most that one read call of the operating system is asked for. */
const MAX_READ_BYTES = 1 << 30

class FileSource implements ByteSource {
  readonly name: string
  /** A page: a disk reads whole pages, so that skipping less than one saves nothing. */
  readonly mergeGap = 4096
  readonly #handle: FileHandle
  readonly #size: number

  constructor(name: string, handle: FileHandle, size: number) {
    this.name = name
    this.#handle = handle
    this.#size = size
  }

  async size(): Promise<number> {
    return this.#size
  }

  async read(offset: number, length: number): Promise<Uint8Array<ArrayBuffer>> {
    checkRange(this.name, this.#size, offset, length)
    const bytes = allocate(this.name, length)
    for (let done = 0; done < length; ) {
      const { bytesRead } = await this.#handle.read(bytes, done, Math.min(length - done, MAX_READ_BYTES), offset + done)
      if (bytesRead === 0)
        throw new ModelFormatError(`${this.name} ended at byte ${offset + done} while it was read; it was cut short meanwhile`)
      done += bytesRead
    }
    return bytes
  }

  async close(): Promise<void> {
    await this.#handle.close()
  }
}

class FileFolder implements ModelFolder {
  readonly name: string
  declare readonly gguf?: string

  constructor(path: string, gguf?: string) {
    this.name = path
    if (gguf !== undefined) this.gguf = gguf
  }

  async open(file: string): Promise<ByteSource> {
    const size = await this.#sizeOf(file)
    const fs = await import('node:fs/promises')
    if (size === null) throw new ModelFormatError(`${this.name} holds no file ${file}; check the path of the model folder`)
    return new FileSource(`${this.name}/${file}`, await fs.open(`${this.name}/${file}`, 'r'), size)
  }

  async text(file: string): Promise<string> {
    return readText(await this.open(file))
  }

  async exists(file: string): Promise<boolean> {
    return (await this.#sizeOf(file)) !== null
  }

  /** Bytes of a regular file, null where there is none. Asked before opening, since opening a pipe would wait for ever. */
  async #sizeOf(file: string): Promise<number | null> {
    checkFileName(this.name, file)
    const fs = await import('node:fs/promises')
    try {
      const stat = await fs.stat(`${this.name}/${file}`)
      return stat.isFile() ? stat.size : null
    } catch (cause) {
      const { code } = cause as NodeJS.ErrnoException
      if (code === 'ENOENT' || code === 'ENOTDIR') return null
      throw new ModelFormatError(`${this.name}/${file} cannot be read (${code}); check its permissions`, { cause })
    }
  }
}

/** The model folder at `path`, or the model in the .gguf file there. Nothing is read until a file is asked for. */
export function fileFolder(path: string): ModelFolder {
  const { folder, gguf } = splitPath(path)
  return new FileFolder(folder.replace(/(?<=[^/])\/+$/, ''), gguf)
}
