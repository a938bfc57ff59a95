// StoreServer: where the ranks of several machines meet: keys and values, who has joined, and word of who has failed. TCP, behind a token.
import { randomBytes } from 'node:crypto'
import { type AddressInfo, createServer, type Server, type Socket } from 'node:net'
import { ArgumentError } from '../../core/errors.ts'
import {
  bytesText,
  encodeFrame,
  type Fault,
  FRAME_LIMIT,
  type Frame,
  FrameReader,
  GREETING_LIMIT,
  KIND,
  NONCE_BYTES,
  STORE_MAGIC,
  STORE_VERSION,
  textBytes,
  uint32At,
  uint32s,
} from './store-protocol.ts'
import { StoreTable } from './store-table.ts'
import { proofOf, sameProof } from './token-node.ts'

export interface StoreTimes {
  /** Milliseconds for a new connection to prove that it knows the token. */
  greetingMs?: number
  /** Milliseconds between signs of life. */
  beatMs?: number
  /** Milliseconds without one until a rank counts as gone. Longer than a rank may keep its thread busy. */
  deadMs?: number
}

export interface StoreServerOptions extends StoreTimes {
  /** The address to listen on; this machine alone where absent. */
  host?: string
  /** Any free one where absent or 0. */
  port?: number
  token: string
  /** Ranks of the program; the first that joins says where absent. */
  size?: number
  /** The rank that hosts the store: it counts as gone when the store is. */
  rank?: number
}

const NOTHING = new Uint8Array(0)
/** Connections that may be at their greeting at once. */
const STRANGERS = 64
/** Milliseconds between two lines about refused connections. */
const COMPLAINT_MS = 1000
export const BEAT_MS = 1000
export const DEAD_MS = 15_000

interface Peer {
  socket: Socket
  address: string
  reader: FrameReader
  nonce: Uint8Array
  greeting: NodeJS.Timeout | null
  rank: number | null
  lastSeen: number
}

export class StoreServer {
  readonly host: string
  readonly port: number
  readonly #server: Server
  readonly #token: string
  readonly #rank: number
  readonly #greetingMs: number
  readonly #deadMs: number
  readonly #table = new StoreTable()
  readonly #peers = new Set<Peer>()
  readonly #ranks = new Map<number, Peer>()
  readonly #faults: Fault[] = []
  readonly #pulse: NodeJS.Timeout
  #size: number | null
  #strangers = 0
  #lastPulse = performance.now()
  #lastComplaint = Number.NEGATIVE_INFINITY
  #unsaid = 0
  #onLeave: (() => void) | null = null

  /** @throws ERR_ARGUMENT where the address cannot be listened on. */
  static listen(options: StoreServerOptions): Promise<StoreServer> {
    const { host = '127.0.0.1', port = 0 } = options
    const server = createServer({ keepAlive: true, keepAliveInitialDelay: 1000, noDelay: true })
    return new Promise((resolve, reject) => {
      server.once('error', (cause: NodeJS.ErrnoException) => {
        const advice =
          cause.code === 'EADDRINUSE' ? 'another program has the port: choose another MASTER_PORT' : 'see MASTER_ADDR and MASTER_PORT'
        reject(new ArgumentError(`Cannot listen on ${host}:${port}: ${cause.message}; ${advice}`, { cause }))
      })
      server.listen({ host, port }, () => resolve(new StoreServer(server, options)))
    })
  }

  private constructor(
    server: Server,
    { token, size, rank = 0, greetingMs = 5000, beatMs = BEAT_MS, deadMs = DEAD_MS }: StoreServerOptions,
  ) {
    const { address, port } = server.address() as AddressInfo
    this.host = address
    this.port = port
    this.#server = server
    this.#token = token
    this.#rank = rank
    this.#size = size ?? null
    this.#greetingMs = greetingMs
    this.#deadMs = deadMs
    server.removeAllListeners('error')
    server.on('error', () => {}) // accept failed for one connection; the others go on
    server.on('connection', (socket) => this.#greet(socket))
    server.unref()
    this.#pulse = setInterval(() => this.#lookForDead(beatMs), beatMs).unref()
  }

  /** Ends the store, once all other ranks have left or `graceMs` milliseconds are over; takes no new connection from now on. */
  async close(graceMs = 0): Promise<void> {
    const closed = new Promise<void>((resolve) => void this.#server.close(() => resolve()))
    if (graceMs > 0 && this.#others() > 0) {
      await new Promise<void>((resolve) => {
        const timer = setTimeout(resolve, graceMs)
        this.#onLeave = () => {
          if (this.#others() > 0) return
          clearTimeout(timer)
          resolve()
        }
      })
    }
    clearInterval(this.#pulse)
    this.#table.forget()
    this.#ranks.clear()
    for (const { socket } of this.#peers) socket.destroy()
    await closed
  }

  #others(): number {
    return this.#ranks.size - (this.#ranks.has(this.#rank) ? 1 : 0)
  }

  #greet(socket: Socket): void {
    socket.unref()
    socket.on('error', () => {}) // 'close' follows
    if (this.#strangers >= STRANGERS) {
      this.#complain(socket, `${STRANGERS} other connections have not proven yet that they know the token`)
      socket.destroy()
      return
    }
    this.#strangers++
    const peer: Peer = {
      socket,
      address: addressOf(socket),
      reader: new FrameReader(GREETING_LIMIT),
      nonce: randomBytes(NONCE_BYTES),
      greeting: setTimeout(() => socket.destroy(), this.#greetingMs).unref(),
      rank: null,
      lastSeen: performance.now(),
    }
    this.#peers.add(peer)
    socket.on('data', (chunk) => {
      peer.lastSeen = performance.now()
      try {
        peer.reader.push(chunk, (frame) => {
          if (!socket.destroyed) this.#take(peer, frame)
        })
      } catch (error) {
        this.#complain(socket, `it sent ${(error as Error).message}`)
        socket.destroy()
      }
    })
    socket.on('close', () => this.#lose(peer, 'its connection to the store closed'))
    socket.write(encodeFrame(KIND.hello, 0, '', Buffer.concat([textBytes(STORE_MAGIC), Uint8Array.of(STORE_VERSION), peer.nonce])))
  }

  #admit(peer: Peer, { kind, value }: Frame): void {
    if (kind !== KIND.proof || value.byteLength !== NONCE_BYTES * 2) throw new Error('no proof that it knows the token')
    const nonce = value.subarray(0, NONCE_BYTES)
    this.#endGreeting(peer)
    if (!sameProof(value.subarray(NONCE_BYTES), proofOf(this.#token, 'client', peer.nonce, nonce))) {
      this.#complain(peer.socket, 'its token is another than this one (RANKMESH_TOKEN)')
      peer.socket.end(encodeFrame(KIND.refused))
      peer.socket.setTimeout(this.#greetingMs, () => peer.socket.destroy())
      peer.reader.limit = 0
      return
    }
    peer.reader.limit = FRAME_LIMIT
    const proof = proofOf(this.#token, 'server', peer.nonce, nonce)
    peer.socket.write(encodeFrame(KIND.welcome, 0, '', Buffer.concat([proof, uint32s(this.#rank)])))
  }

  #take(peer: Peer, frame: Frame): void {
    if (peer.greeting) {
      this.#admit(peer, frame)
      return
    }
    const result = this.#answer(peer, frame)
    if (result) peer.socket.write(encodeFrame(KIND.ok, frame.id, '', result))
  }

  /** What a request gives, or null where the answer is another or comes later. */
  #answer(peer: Peer, { kind, id, key, value }: Frame): Uint8Array | null {
    switch (kind) {
      case KIND.beat:
        peer.socket.write(encodeFrame(KIND.beat))
        return null
      case KIND.set:
        this.#table.set(key, value)
        return NOTHING
      case KIND.get: {
        const there = this.#table.get(key)
        if (there) return there
        const done = (late: Uint8Array | null): void =>
          void peer.socket.write(encodeFrame(late ? KIND.ok : KIND.absent, id, '', late ?? NOTHING))
        this.#table.wait(peer, key, uint32At(value, 0), done)
        return null
      }
      case KIND.add:
        return this.#table.add(key, value)
      case KIND.claim: {
        const first = this.#table.get(key)
        return Buffer.concat([Uint8Array.of(first ? 0 : 1), first ?? this.#table.set(key, value)])
      }
      case KIND.delete:
        return Uint8Array.of(this.#table.delete(key) ? 1 : 0)
      case KIND.join: {
        const refusal = this.#join(peer, uint32At(value, 0), uint32At(value, 4))
        if (refusal === null) return NOTHING
        peer.socket.write(encodeFrame(KIND.error, id, '', textBytes(refusal)))
        return null
      }
      case KIND.leave:
        this.#leave(peer)
        return NOTHING
      case KIND.fail:
        this.#publish(JSON.parse(bytesText(value)) as Fault)
        return NOTHING
      case KIND.notice:
        for (const other of this.#ranks.values()) if (other !== peer) other.socket.write(encodeFrame(KIND.notice, 0, key, value))
        return NOTHING
      default:
        throw new Error(`a frame of kind ${kind}, which is none`)
    }
  }

  /** Why the rank cannot join, or null. */
  #join(peer: Peer, rank: number, size: number): string | null {
    this.#size ??= size
    if (size !== this.#size)
      return `Rank ${rank} came for a program of ${size} ranks, but this one has ${this.#size}; give all the same WORLD_SIZE`
    if (rank >= size) return `Expected a rank in [0, ${size - 1}] but received ${rank}`
    if (peer.rank !== null) return `This connection has joined as rank ${peer.rank}`
    const first = this.#ranks.get(rank)
    if (first) return `Rank ${rank} is taken, by a process at ${first.address}; give each process a RANK of its own`
    peer.rank = rank
    this.#ranks.set(rank, peer)
    for (const fault of this.#faults) peer.socket.write(faultFrame(fault))
    return null
  }

  #leave(peer: Peer): void {
    if (peer.rank !== null) this.#ranks.delete(peer.rank)
    peer.rank = null
    this.#onLeave?.()
  }

  /** Tells all ranks of a fault; of those that name the same group and rank, the first. */
  #publish(fault: Fault): void {
    if (this.#faults.some(({ rank, scope }) => scope === fault.scope && (scope !== undefined || rank === fault.rank))) return
    this.#faults.push(fault)
    for (const { socket } of this.#ranks.values()) socket.write(faultFrame(fault))
  }

  #lose(peer: Peer, why: string): void {
    if (!this.#peers.delete(peer)) return
    this.#endGreeting(peer)
    this.#table.forget(peer)
    const { rank, address } = peer
    if (rank === null || this.#ranks.get(rank) !== peer) return
    this.#leave(peer)
    this.#publish({ code: 'ERR_RANK_FAILED', message: `Rank ${rank} (${address}) is gone: ${why}`, rank })
  }

  #lookForDead(beatMs: number): void {
    const now = performance.now()
    const late = now - this.#lastPulse > 3 * beatMs // this thread was busy: what came meanwhile has not been read yet
    this.#lastPulse = now
    if (late) return
    for (const peer of this.#ranks.values()) {
      if (now - peer.lastSeen <= this.#deadMs) continue
      this.#lose(peer, `it gave no sign of life for ${this.#deadMs} ms`)
      peer.socket.destroy()
    }
  }

  #endGreeting(peer: Peer): void {
    if (!peer.greeting) return
    clearTimeout(peer.greeting)
    peer.greeting = null
    this.#strangers--
  }

  #complain(socket: Socket, why: string): void {
    const now = performance.now()
    this.#unsaid++
    if (now - this.#lastComplaint < COMPLAINT_MS) return
    const more = this.#unsaid > 1 ? ` (and ${this.#unsaid - 1} more since the last such line)` : ''
    process.stderr.write(`rankmesh: the store at ${this.host}:${this.port} refused ${addressOf(socket)}: ${why}${more}\n`)
    this.#lastComplaint = now
    this.#unsaid = 0
  }
}

function faultFrame(fault: Fault): Uint8Array {
  return encodeFrame(KIND.fail, 0, '', textBytes(JSON.stringify(fault)))
}

function addressOf({ remoteAddress, remotePort }: Socket): string {
  return `${remoteAddress ?? 'an unknown address'}:${remotePort ?? 0}`
}
