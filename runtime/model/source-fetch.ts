// Model folders behind HTTP, for the browser: ranged requests where the server serves them, else each file once and whole.
import { ModelFormatError } from '../core/errors.ts'
import { type ByteSource, checkFileName, checkRange, type ModelFolder, readText, splitPath } from './source.ts'

export interface FetchFolderOptions {
  /** What makes the requests; the global `fetch` unless given. */
  fetch?: typeof fetch
  /** Sent with every request, e.g. `authorization`. */
  headers?: Record<string, string>
}

/** What the first request for a file showed: its bytes in all, and the bytes themselves where the server sent them at once. */
interface Found {
  size: number
  whole: Uint8Array<ArrayBuffer> | null
}

class FetchSource implements ByteSource {
  readonly name: string
  /** About what a connection carries in the time of one more request. */
  readonly mergeGap = 1 << 20
  readonly #get: (range: string) => Promise<Response>
  readonly #size: number
  #whole: Uint8Array<ArrayBuffer> | null

  constructor(name: string, get: (range: string) => Promise<Response>, found: Found) {
    this.name = name
    this.#get = get
    this.#size = found.size
    this.#whole = found.whole
  }

  async size(): Promise<number> {
    return this.#size
  }

  async read(offset: number, length: number): Promise<Uint8Array<ArrayBuffer>> {
    checkRange(this.name, this.#size, offset, length)
    if (length === 0) return new Uint8Array(0)
    if (this.#whole) return this.#whole.slice(offset, offset + length)
    const last = offset + length - 1
    const response = await this.#get(`bytes=${offset}-${last}`)
    const bytes = new Uint8Array(await response.arrayBuffer())
    if (response.status === 200 && bytes.length === this.#size) {
      this.#whole = bytes
      return bytes.slice(offset, offset + length)
    }
    const range = response.headers.get('content-range')
    if (response.status !== 206 || bytes.length !== length || !(range ?? `bytes ${offset}-`).startsWith(`bytes ${offset}-`)) {
      throw new ModelFormatError(
        `Expected bytes ${offset}-${last} of ${this.name} but the server answered ${response.status} with ${bytes.length} bytes (content-range ${range}); the file changed, or the server does not serve ranges`,
      )
    }
    return bytes
  }

  async close(): Promise<void> {
    this.#whole = null
  }
}

class FetchFolder implements ModelFolder {
  readonly name: string
  declare readonly gguf?: string
  readonly #fetch: typeof fetch
  readonly #headers: Record<string, string>

  constructor(base: string, options: FetchFolderOptions) {
    const { folder, gguf } = splitPath(base)
    this.name = folder.replace(/\/+$/, '')
    if (gguf !== undefined) this.gguf = decoded(gguf)
    // Called as a plain function: a browser's fetch refuses any other receiver.
    this.#fetch = options.fetch ?? ((...args) => fetch(...args))
    this.#headers = options.headers ?? {}
  }

  async open(file: string): Promise<ByteSource> {
    const response = await this.#probe(file)
    if (!response) throw new ModelFormatError(`${this.name} holds no file ${file}; check the address of the model folder`)
    return new FetchSource(`${this.name}/${file}`, (range) => this.#get(file, 'GET', range), await this.#examine(file, response))
  }

  async text(file: string): Promise<string> {
    return readText(await this.open(file))
  }

  async exists(file: string): Promise<boolean> {
    const response = await this.#probe(file)
    await response?.body?.cancel()
    return response !== null
  }

  async #get(file: string, method: 'GET' | 'HEAD', range?: string): Promise<Response> {
    const headers = range === undefined ? this.#headers : { ...this.#headers, range }
    const url = `${this.name}/${encodeURIComponent(file)}`
    try {
      return await this.#fetch(url, { method, headers })
    } catch (cause) {
      throw new ModelFormatError(`No answer for ${url}: ${cause instanceof Error ? cause.message : String(cause)}`, { cause })
    }
  }

  /** Asks for the first byte; null where there is no such file. */
  async #probe(file: string): Promise<Response | null> {
    checkFileName(this.name, file)
    const response = await this.#get(file, 'GET', 'bytes=0-0')
    // A page instead of a file: servers of single-page applications answer so for every address they do not know.
    const page = response.headers.get('content-type')?.startsWith('text/html') ?? false
    if (page || response.status === 404 || response.status === 410) {
      await response.body?.cancel()
      return null
    }
    if (response.status !== 200 && response.status !== 206 && response.status !== 416) {
      await response.body?.cancel()
      throw new ModelFormatError(`Expected ${this.name}/${file} but the server answered ${response.status} ${response.statusText}`)
    }
    return response
  }

  async #examine(file: string, response: Response): Promise<Found> {
    if (response.status === 200) {
      const whole = new Uint8Array(await response.arrayBuffer())
      return { size: whole.length, whole }
    }
    await response.body?.cancel()
    if (response.status === 416) return { size: 0, whole: new Uint8Array(0) }
    const total = response.headers.get('content-range')?.match(/\/(\d+)$/)?.[1]
    // Another origin may hide content-range; content-length it may not.
    const size = Number(total ?? (await this.#get(file, 'HEAD')).headers.get('content-length') ?? Number.NaN)
    if (!Number.isSafeInteger(size)) {
      throw new ModelFormatError(`The server does not say how long ${this.name}/${file} is; let it expose the header content-range`)
    }
    return { size, whole: null }
  }
}

/** A part of an address as plain text; as it is where its percent signs encode nothing. */
function decoded(part: string): string {
  try {
    return decodeURIComponent(part)
  } catch {
    return part
  }
}

/**
 * The model folder at the address `base`, or the model in the .gguf file there; relative or absolute, without a query. Nothing is fetched until
 * a file is asked for.
 */
export function fetchFolder(base: string | URL, options: FetchFolderOptions = {}): ModelFolder {
  return new FetchFolder(String(base), options)
}
