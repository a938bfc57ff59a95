// StoreClient: a rank's connection to the store: keys and values, joining as a rank, hearing of faults and telling of them.
import { connect as connectSocket, type Socket } from 'node:net'
import { ArgumentError, RankFailedError, type RankmeshError, TimeoutError } from '../../core/errors.ts'
import { greet } from './store-greeting-node.ts'
import {
  bytesText,
  encodeFrame,
  type Fault,
  FRAME_LIMIT,
  type Frame,
  FrameReader,
  float64,
  float64At,
  KIND,
  textBytes,
  uint32s,
} from './store-protocol.ts'
import { BEAT_MS, DEAD_MS, type StoreTimes } from './store-server-node.ts'

export interface StoreClientOptions extends StoreTimes {
  host: string
  port: number
  token: string
  /** Milliseconds until the store must be there. */
  timeoutMs: number
  signal?: AbortSignal | undefined
}

interface Request {
  resolve(value: Uint8Array): void
  reject(error: unknown): void
  /** What it asked for, for messages. */
  about: string
}

type FaultListener = (fault: Fault) => void

export class StoreClient {
  /** What has ended something, in the order in which all ranks hear of it. */
  readonly faults: Fault[] = []
  readonly #socket: Socket
  readonly #where: string
  readonly #host: number
  readonly #requests = new Map<number, Request>()
  readonly #faultListeners = new Set<FaultListener>()
  readonly #noticeListeners = new Map<string, (value: Uint8Array) => void>()
  readonly #pulse: NodeJS.Timeout
  #lastSeen = performance.now()
  #next = 1
  #end: RankmeshError | null = null
  #joined = false
  #lastBeat = performance.now()

  /**
   * Tries until the store is there.
   * @throws ERR_ARGUMENT at once where the tokens differ or no store of this version listens there; ERR_TIMEOUT where nothing has by then; the
   * signal's reason.
   */
  static async connect(options: StoreClientOptions): Promise<StoreClient> {
    const { socket, host } = await greet(options, () =>
      connectSocket({ host: options.host, port: options.port, noDelay: true, keepAlive: true, keepAliveInitialDelay: 1000 }),
    )
    return new StoreClient(socket, host, options)
  }

  private constructor(socket: Socket, hostRank: number, options: StoreClientOptions) {
    const { host, port, beatMs = BEAT_MS, deadMs = DEAD_MS } = options
    this.#socket = socket
    this.#host = hostRank
    this.#where = `${host}:${port}`
    const reader = new FrameReader(FRAME_LIMIT)
    socket.on('data', (chunk) => {
      this.#lastSeen = performance.now()
      try {
        reader.push(chunk, (frame) => this.#take(frame))
      } catch (error) {
        this.#lose(`it sent ${(error as Error).message}`)
      }
    })
    socket.on('close', () => this.#lose('the connection closed'))
    socket.on('error', () => {}) // 'close' follows
    socket.unref()
    this.#pulse = setInterval(() => this.#beat(beatMs, deadMs), beatMs).unref()
  }

  /** The address of this machine that the store's host sees. */
  get localAddress(): string {
    return this.#socket.localAddress ?? '127.0.0.1'
  }

  /** The first fault this rank has heard of, or null. */
  get fault(): Fault | null {
    return this.faults[0] ?? null
  }

  async set(key: string, value: Uint8Array): Promise<void> {
    await this.#ask(KIND.set, key, value)
  }

  /** Waits until the key is there. @throws ERR_TIMEOUT */
  get(key: string, timeoutMs: number): Promise<Uint8Array> {
    return this.#ask(KIND.get, key, uint32s(Math.max(0, Math.min(2 ** 31 - 1, Math.ceil(timeoutMs)))), `${key} (${timeoutMs} ms)`)
  }

  /** Adds to a number that starts at 0; gives the sum. */
  async add(key: string, amount = 1): Promise<number> {
    return float64At(await this.#ask(KIND.add, key, float64(amount)))
  }

  /** Sets the key if nobody has; gives what it is now. */
  async claim(key: string, value: Uint8Array): Promise<{ won: boolean; value: Uint8Array }> {
    const answer = await this.#ask(KIND.claim, key, value)
    return { won: answer[0] === 1, value: answer.subarray(1) }
  }

  /** Whether the key was there. */
  async delete(key: string): Promise<boolean> {
    return (await this.#ask(KIND.delete, key))[0] === 1
  }

  /**
   * Enters the program as `rank`: from now on the others hear when this connection drops without `leave`.
   * @throws ERR_ARGUMENT where the size differs from the others' or the rank is taken.
   */
  async join(rank: number, size: number): Promise<void> {
    await this.#ask(KIND.join, '', uint32s(rank, size))
    this.#joined = true
  }

  /** This rank ends in order: nobody misses it. */
  async leave(): Promise<void> {
    this.#joined = false
    await this.#ask(KIND.leave)
  }

  /** Tells all ranks of a fault; the first that ends a group counts. */
  async fail(fault: Fault): Promise<void> {
    await this.#ask(KIND.fail, '', textBytes(JSON.stringify(fault)))
  }

  /** Tells all other ranks something; nobody keeps it for those who do not listen yet. */
  async notify(topic: string, value: Uint8Array): Promise<void> {
    await this.#ask(KIND.notice, topic, value)
  }

  /** Calls `listener` with each notice of a topic; returns how to stop that. */
  onNotice(topic: string, listener: (value: Uint8Array) => void): () => void {
    this.#noticeListeners.set(topic, listener)
    return () => void this.#noticeListeners.delete(topic)
  }

  /** Calls `listener` with each fault to come; returns how to stop that. */
  onFault(listener: FaultListener): () => void {
    this.#faultListeners.add(listener)
    return () => void this.#faultListeners.delete(listener)
  }

  /** Ends the connection. Whoever has joined and not left counts as gone. */
  close(): void {
    this.#finish(new ArgumentError('This connection to the store is closed'))
    this.#socket.destroy()
  }

  #ask(kind: number, key = '', value?: Uint8Array, about = key): Promise<Uint8Array> {
    if (this.#end) return Promise.reject(this.#end)
    const id = this.#next++
    const frame = encodeFrame(kind, id, key, value)
    if (frame.byteLength > FRAME_LIMIT) {
      return Promise.reject(
        new ArgumentError(`Expected at most ${FRAME_LIMIT} bytes for the store but received ${frame.byteLength} (${key})`),
      )
    }
    return new Promise((resolve, reject) => {
      if (this.#requests.size === 0) this.#socket.ref()
      this.#requests.set(id, { resolve, reject, about })
      this.#socket.write(frame)
    })
  }

  #take({ kind, id, key, value }: Frame): void {
    if (kind === KIND.beat) return
    if (kind === KIND.notice) {
      this.#noticeListeners.get(key)?.(value)
      return
    }
    if (kind === KIND.fail) {
      this.#hear(JSON.parse(bytesText(value)) as Fault)
      return
    }
    const request = this.#requests.get(id)
    if (!request) throw new Error(`an answer to request ${id}, which nobody made`)
    this.#requests.delete(id)
    if (this.#requests.size === 0) this.#socket.unref()
    if (kind === KIND.ok) request.resolve(value)
    else if (kind === KIND.absent) request.reject(new TimeoutError(`Nobody has set ${request.about} in the store at ${this.#where}`))
    else request.reject(new ArgumentError(bytesText(value)))
  }

  #hear(fault: Fault): void {
    this.faults.push(fault)
    for (const listener of [...this.#faultListeners]) listener(fault)
  }

  #lose(why: string): void {
    if (this.#end) return
    const rank = this.#host
    const fault: Fault = {
      code: 'ERR_RANK_FAILED',
      message: `Rank ${rank}, which hosts the store at ${this.#where}, is gone: ${why}`,
      rank,
    }
    this.#finish(new RankFailedError(fault.message, { rank }))
    this.#socket.destroy()
    if (this.#joined) this.#hear(fault)
  }

  #finish(error: RankmeshError): void {
    if (this.#end) return
    this.#end = error
    clearInterval(this.#pulse)
    for (const { reject } of this.#requests.values()) reject(error)
    this.#requests.clear()
  }

  #beat(beatMs: number, deadMs: number): void {
    const now = performance.now()
    const late = now - this.#lastBeat > 3 * beatMs // this thread was busy: what came meanwhile has not been read yet
    this.#lastBeat = now
    if (!late && now - this.#lastSeen > deadMs) this.#lose(`it gave no sign of life for ${deadMs} ms`)
    else this.#socket.write(encodeFrame(KIND.beat))
  }
}
