// A stream that writes a prefix before each line, without ever holding more than one bounded line.
import { Transform } from 'node:stream'

/** Lines longer than this are cut, so that an endless one needs no endless memory. */
export const MAX_LINE_BYTES = 65_536

const NEWLINE = 0x0a

/** Lines go on whole: bytes are held until their newline comes. A last line without one gets it at the end. Text is UTF-8 and stays so. */
export function linePrefixer(prefix: string): Transform {
  const start = Buffer.from(prefix)
  const newline = Buffer.from('\n')
  let held: Buffer[] = []
  let heldBytes = 0
  const line = (last: Buffer): Buffer[] => {
    const parts = [start, ...held, last]
    held = []
    heldBytes = 0
    return parts
  }
  return new Transform({
    transform(chunk: Buffer, _, done) {
      const parts: Buffer[] = []
      let at = 0
      while (at < chunk.length) {
        const end = chunk.indexOf(NEWLINE, at) + 1
        const stop = Math.min(end || chunk.length, at + MAX_LINE_BYTES - heldBytes)
        const piece = chunk.subarray(at, stop)
        at = stop
        if (stop === end) {
          parts.push(...line(piece))
        } else if (heldBytes + piece.length < MAX_LINE_BYTES) {
          held.push(piece)
          heldBytes += piece.length
        } else {
          const whole = Buffer.concat([...held, piece])
          const cut = characterStart(whole)
          held = []
          parts.push(...line(whole.subarray(0, cut)), newline)
          held = cut < whole.length ? [whole.subarray(cut)] : []
          heldBytes = whole.length - cut
        }
      }
      done(null, parts.length > 0 ? Buffer.concat(parts) : undefined)
    },
    flush(done) {
      done(null, heldBytes > 0 ? Buffer.concat([...line(newline)]) : undefined)
    },
  })
}

/** Where to cut: before the last character if it may not be complete, which a character of several bytes at the end may always be. */
function characterStart(bytes: Buffer): number {
  let at = bytes.length
  for (let back = 1; back <= 4 && back < bytes.length; back++) {
    const byte = bytes[bytes.length - back] as number
    if (byte < 0x80) break
    if (byte >= 0xc0) {
      at = bytes.length - back
      break
    }
  }
  return at
}
