// Reads equally spaced byte runs of a file (a slice of a row-major tensor), joining close ones so that no read is tiny without need.
import { allocate, type ByteSource } from './source.ts'

/** `count` runs of `length` bytes; run i starts at `begin + i * stride`. */
export interface Runs {
  begin: number
  count: number
  length: number
  /** At least `length`. */
  stride: number
}

/** Bytes that one read of joined runs spans at most, and half of what is in flight at once. */
const BAND_BYTES = 4 << 20
const MAX_IN_FLIGHT = 32

export interface ReadRuns {
  /** The runs end to end. */
  bytes: Uint8Array<ArrayBuffer>
  /** Bytes read for them; more than `bytes` holds where runs were joined over their gaps. */
  bytesRead: number
}

/**
 * Reads `runs` of `source`. Runs at most `mergeGap` bytes apart are read as bands of up to 4 MB and cut out of them; others one by one,
 * up to 32 at a time.
 */
export async function readRuns(source: ByteSource, runs: Runs, mergeGap: number): Promise<ReadRuns> {
  const { begin, count, length, stride } = runs
  const total = count * length
  if (total === 0) return { bytes: new Uint8Array(0), bytesRead: 0 }
  if (count === 1 || stride === length) return { bytes: await source.read(begin, total), bytesRead: total }

  const perBand = stride - length <= mergeGap ? Math.max(1, Math.floor(BAND_BYTES / stride)) : 1
  const span = (rows: number) => (rows - 1) * stride + length
  const inFlight = Math.max(1, Math.min(MAX_IN_FLIGHT, Math.floor((2 * BAND_BYTES) / span(perBand))))
  const bytes = allocate(source.name, total)
  let bytesRead = 0

  const readBand = async (first: number) => {
    const rows = Math.min(perBand, count - first)
    const band = await source.read(begin + first * stride, span(rows))
    bytesRead += band.length
    for (let row = 0; row < rows; row++) bytes.set(band.subarray(row * stride, row * stride + length), (first + row) * length)
  }
  for (let first = 0; first < count; first += perBand * inFlight) {
    const end = Math.min(count, first + perBand * inFlight)
    await Promise.all(Array.from({ length: Math.ceil((end - first) / perBand) }, (_, band) => readBand(first + band * perBand)))
  }
  return { bytes, bytesRead }
}
