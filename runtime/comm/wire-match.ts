// Matching of calls over a wire: one round in which every rank says what it calls, and gets everybody's payload or an error.
import { platform } from '#platform'
import { CollectiveMismatchError, describe, RankFailedError } from '../core/errors.ts'
import { underway } from './abort.ts'
import { snapshot } from './host.ts'
import { type MeetOptions, type Offer, offerOf, timeoutOf } from './rendezvous.ts'
import { type Lane, type Wire, waitFor } from './wire.ts'

/**
 * One round on a lane in which calls are matched: every member's payload as bytes, the caller's own also as it is. `bytesOf` makes an
 * offer's payload what the others see; bytes go as they are. `members` are the lane's, by rank in the world.
 * @throws as Rendezvous.meet: the caller's own refusal; ERR_COLLECTIVE_MISMATCH on every member.
 */
export async function matched<P>(
  wire: Wire,
  lane: Lane,
  call: string,
  offer: Offer<P>,
  defaultTimeoutMs: number,
  { timeoutMs = defaultTimeoutMs, signal }: MeetOptions,
  bytesOf: (payload: P) => unknown,
  members: readonly number[] = wire.members,
): Promise<{ results: readonly Uint8Array[]; payload: P }> {
  wire.note(call)
  const timed = offerOf(() => timeoutOf(timeoutMs))
  let mine: Offer<P> = 'refusal' in timed ? timed : offer
  let bytes: Uint8Array = NOTHING
  if (!('refusal' in mine)) {
    try {
      const value = bytesOf(mine.payload)
      bytes = value === undefined ? NOTHING : value instanceof Uint8Array ? value : encodeValue(value)
    } catch (refusal) {
      mine = { refusal }
    }
  }
  const wait = waitFor('refusal' in timed ? defaultTimeoutMs : timeoutMs, call, signal)
  const refusal = 'refusal' in mine ? messageOf(mine.refusal) : null
  const messages = (await underway(wire, wait, () => lane.exchange(pack(call, refusal, bytes), wait))).map(unpack)
  if ('refusal' in mine) throw mine.refusal
  const own = messages[lane.rank] as Message
  const other = messages.findIndex((message) => !sameBytes(message.call, own.call))
  const rankOf = (index: number): number => members[index] as number
  const refused = messages.findIndex((message) => message.refused)
  if (refused >= 0) {
    const rank = rankOf(refused)
    const why = text((messages[refused] as Message).bytes)
    throw new CollectiveMismatchError(`Rank ${rank} could not take part in ${call}: ${why}`, {
      rank,
      cause: new RankFailedError(why, { rank }),
    })
  }
  if (other >= 0) throw mismatch(messages, rankOf)
  return { results: messages.map((message) => message.bytes), payload: (mine as { payload: P }).payload }
}

interface Message {
  call: Uint8Array
  refused: boolean
  bytes: Uint8Array
}

const NOTHING = new Uint8Array(0)
const encoder = new TextEncoder()
const decoder = new TextDecoder()

/** Length of the call, whether refused, the call, then the payload or the refusal. */
function pack(call: string, refusal: string | null, payload: Uint8Array): Uint8Array {
  const name = encoder.encode(call)
  const body = refusal === null ? payload : encoder.encode(refusal)
  const message = new Uint8Array(5 + name.byteLength + body.byteLength)
  new DataView(message.buffer).setUint32(0, name.byteLength, true)
  message[4] = refusal === null ? 0 : 1
  message.set(name, 5)
  message.set(body, 5 + name.byteLength)
  return message
}

function unpack(message: Uint8Array): Message {
  const length = new DataView(message.buffer, message.byteOffset, message.byteLength).getUint32(0, true)
  return { call: message.subarray(5, 5 + length), refused: message[4] === 1, bytes: message.subarray(5 + length) }
}

function mismatch(messages: readonly Message[], rankOf: (index: number) => number): CollectiveMismatchError {
  const first = messages[0] as Message
  const index = messages.findIndex((message) => !sameBytes(message.call, first.call))
  const [a, b] = [rankOf(0), rankOf(index)]
  return new CollectiveMismatchError(
    `Ranks called different collectives: rank ${a} called ${text(first.call)}, rank ${b} called ${text((messages[index] as Message).call)}; all ranks of a group must make the same calls in the same order`,
    { rank: b },
  )
}

function sameBytes(a: Uint8Array, b: Uint8Array): boolean {
  if (a.byteLength !== b.byteLength) return false
  for (let i = 0; i < a.byteLength; i++) if (a[i] !== b[i]) return false
  return true
}

function text(bytes: Uint8Array): string {
  return decoder.decode(bytes.slice())
}

function messageOf(refusal: unknown): string {
  return refusal instanceof Error ? refusal.message : describe(refusal)
}

/** @throws ERR_ARGUMENT for what cannot be cloned. */
export function encodeValue(value: unknown): Uint8Array {
  return snapshot(value, (given) => platform.serialize(given))
}

export function decodeValue(bytes: Uint8Array): unknown {
  return bytes.byteLength === 0 ? undefined : platform.deserialize(new Uint8Array(bytes))
}
