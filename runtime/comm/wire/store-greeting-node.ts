// How a client of the store comes in: tries until somebody listens, then each side proves to the other that it knows the token.
import { randomBytes } from 'node:crypto'
import type { Socket } from 'node:net'
import { ArgumentError, TimeoutError } from '../../core/errors.ts'
import {
  bytesText,
  encodeFrame,
  type Frame,
  FrameReader,
  GREETING_LIMIT,
  KIND,
  NONCE_BYTES,
  STORE_MAGIC,
  STORE_VERSION,
  uint32At,
} from './store-protocol.ts'
import { proofOf, sameProof } from './token-node.ts'

export interface GreetingOptions {
  host: string
  port: number
  token: string
  timeoutMs: number
  greetingMs?: number
  signal?: AbortSignal | undefined
}

/** A connection on which both sides have proven themselves. Nothing more comes until the client asks. */
export interface Greeted {
  socket: Socket
  /** The rank that hosts the store. */
  host: number
}

/** Milliseconds between attempts: the first, and the most. */
const FIRST_PAUSE_MS = 20
const LONGEST_PAUSE_MS = 500

/** Opens connections until one leads to a store. @throws as StoreClient.connect. */
export async function greet(options: GreetingOptions, open: () => Socket): Promise<Greeted> {
  const { host, port, timeoutMs, signal } = options
  const deadline = performance.now() + timeoutMs
  let last = 'nobody answered'
  for (let pause = FIRST_PAUSE_MS; ; pause = Math.min(pause * 1.5, LONGEST_PAUSE_MS)) {
    signal?.throwIfAborted()
    const left = deadline - performance.now()
    if (left <= 0) {
      throw new TimeoutError(
        `Could not reach the store at ${host}:${port} within ${timeoutMs} ms (${last}); is rank 0 running, and are MASTER_ADDR and MASTER_PORT its address?`,
      )
    }
    try {
      return await attempt(open(), options, Math.min(left, options.greetingMs ?? 5000))
    } catch (error) {
      if (error instanceof ArgumentError || signal?.aborted) throw error
      last = (error as NodeJS.ErrnoException).code ?? (error as Error).message
    }
    await sleep(Math.min(pause, Math.max(0, deadline - performance.now())), signal)
  }
}

/** @throws ERR_ARGUMENT where another attempt would end the same, else any error. */
function attempt(socket: Socket, { host, port, token, signal }: GreetingOptions, timeoutMs: number): Promise<Greeted> {
  const where = `${host}:${port}`
  const nonce = randomBytes(NONCE_BYTES)
  let serverNonce: Uint8Array | null = null
  return new Promise((resolve, reject) => {
    const end = (error: unknown): void => {
      stop()
      socket.on('error', () => {})
      socket.destroy()
      reject(error)
    }
    const timer = setTimeout(() => end(new Error('it did not finish its greeting')), timeoutMs)
    const onAbort = (): void => end(signal?.reason)
    const onClose = (): void => end(new Error('it closed the connection during the greeting'))
    const take = ({ kind, value }: Frame): number | null => {
      if (serverNonce === null) {
        const version = value[STORE_MAGIC.length]
        if (kind !== KIND.hello || bytesText(value.subarray(0, STORE_MAGIC.length)) !== STORE_MAGIC)
          throw new Error('no greeting of a store')
        if (version !== STORE_VERSION) throw new Error(`a greeting of version ${version}, this side has ${STORE_VERSION}`)
        serverNonce = value.slice(STORE_MAGIC.length + 1)
        socket.write(encodeFrame(KIND.proof, 0, '', Buffer.concat([nonce, proofOf(token, 'client', serverNonce, nonce)])))
        return null
      }
      const proven = kind === KIND.welcome && sameProof(value.subarray(0, NONCE_BYTES), proofOf(token, 'server', serverNonce, nonce))
      if (proven) return uint32At(value, NONCE_BYTES)
      throw new ArgumentError(
        kind === KIND.refused
          ? `The store at ${where} refused this rank: its token is another; set the same RANKMESH_TOKEN for all ranks`
          : `What listens at ${where} does not know this program's token; set the same RANKMESH_TOKEN for all ranks, and check MASTER_PORT`,
      )
    }
    const reader = new FrameReader(GREETING_LIMIT)
    const onData = (chunk: Uint8Array): void => {
      try {
        reader.push(chunk, (frame) => {
          const rank = take(frame)
          if (rank === null) return
          stop()
          resolve({ socket, host: rank })
        })
      } catch (error) {
        const sent =
          error instanceof ArgumentError
            ? error
            : new ArgumentError(`What listens at ${where} is no store of Rankmesh: it sent ${(error as Error).message}`)
        end(sent)
      }
    }
    const stop = (): void => {
      clearTimeout(timer)
      signal?.removeEventListener('abort', onAbort)
      socket.off('data', onData).off('error', end).off('close', onClose)
    }
    signal?.addEventListener('abort', onAbort, { once: true })
    socket.on('data', onData).on('error', end).on('close', onClose)
  })
}

function sleep(ms: number, signal: AbortSignal | undefined): Promise<void> {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(done, ms)
    function done(): void {
      clearTimeout(timer)
      signal?.removeEventListener('abort', done)
      if (signal?.aborted) reject(signal.reason)
      else resolve()
    }
    signal?.addEventListener('abort', done)
  })
}
