// Runs the program of several ranks, and says what came of it.
import { spawn } from 'node:child_process'
import { join } from 'node:path'
import { Skip } from './checks.mjs'

const program = join(import.meta.dirname, 'ranks.mjs')

/** What each rank gave. @throws with the program's last words where it failed. */
export async function runRanks(plan, { seconds = 300, env = {} } = {}) {
  const child = spawn(process.execPath, [program, JSON.stringify(plan)], {
    env: { ...process.env, ...env },
    stdio: ['ignore', 'pipe', 'pipe'],
    timeout: seconds * 1000,
    killSignal: 'SIGKILL',
  })
  const texts = ['', '']
  for (const [i, stream] of [child.stdout, child.stderr].entries()) stream.setEncoding('utf8').on('data', (text) => (texts[i] += text))
  const ended = await new Promise((resolve) => child.once('close', (code, signal) => resolve(signal ?? code)))
  if (ended === 0) return JSON.parse(texts[0].trim().split('\n').at(-1))
  const told = texts[1].split('\n').filter((line) => /^\s*\w*Error\b/.test(line))
  const limit = ended === 'SIGKILL' ? ` (limit: ${seconds} s)` : ''
  throw new Error(`the program ended with ${ended}${limit}: ${(told[0] ?? texts[1].slice(-500)).trim()}`)
}

/** The release of NCCL that lets ranks share a device. */
const SHARES = 23003

/** @throws Skip where NCCL is not there, or does not let ranks `share` a GPU that have to. */
export function needNccl({ features, addon }, share) {
  if (!features.nccl.available) throw new Skip(features.nccl.detail)
  const version = addon.nccl.version()
  if (share && version < SHARES) throw new Skip(`NCCL ${version} wants a GPU for each rank; ${SHARES} lets them share`)
}

/** @throws where the ranks' digests are not the same. */
export function alike(results) {
  const digests = results.map(({ digest }) => digest)
  if (new Set(digests).size > 1) throw new Error(`ranks have different bits: ${digests.map((one) => one.slice(0, 8)).join(', ')}`)
  return results[0].about
}
