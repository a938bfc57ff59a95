// The token that all ranks of a program share: from the environment or a file of this user's own, and the proofs that one knows it.
import { createHmac, randomBytes, timingSafeEqual } from 'node:crypto'
import { closeSync, constants, fstatSync, linkSync, mkdirSync, openSync, readFileSync, unlinkSync, writeSync } from 'node:fs'
import { homedir } from 'node:os'
import { dirname, join } from 'node:path'
import { ArgumentError } from '../../core/errors.ts'

/** A token shorter than this can be guessed. */
const SHORTEST = 8

/**
 * RANKMESH_TOKEN, or else what the file `rankmesh/token` in $XDG_CONFIG_HOME (or ~/.config) holds: made on first use, readable by this user
 * alone. Machines that do not share that folder need the variable.
 * @throws ERR_ARGUMENT where others can read the file, or it belongs to somebody else, or the token is too short.
 */
export function rankToken(env: NodeJS.ProcessEnv = process.env): string {
  const given = env.RANKMESH_TOKEN
  if (given) return checkToken(given, 'RANKMESH_TOKEN')
  const path = join(env.XDG_CONFIG_HOME || join(homedir(), '.config'), 'rankmesh', 'token')
  return readToken(path) ?? makeToken(path)
}

/** What proves to the other side that one knows the token, without telling it. */
export function proofOf(token: string, role: 'server' | 'client', serverNonce: Uint8Array, clientNonce: Uint8Array): Uint8Array {
  return createHmac('sha256', token).update(`rankmesh store ${role}\0`).update(serverNonce).update(clientNonce).digest()
}

/** Compares in a time that does not depend on where they differ. */
export function sameProof(a: Uint8Array, b: Uint8Array): boolean {
  return a.byteLength === b.byteLength && timingSafeEqual(a, b)
}

function checkToken(token: string, where: string): string {
  if (token.length >= SHORTEST) return token
  throw new ArgumentError(`Expected at least ${SHORTEST} characters for the token in ${where} but received ${token.length}`)
}

function readToken(path: string): string | null {
  let file: number
  try {
    file = openSync(path, constants.O_RDONLY | constants.O_NOFOLLOW)
  } catch (cause) {
    if ((cause as NodeJS.ErrnoException).code === 'ENOENT') return null
    throw new ArgumentError(`Cannot read the token in ${path}: ${(cause as Error).message}; set RANKMESH_TOKEN instead`, { cause })
  }
  try {
    const { mode, uid } = fstatSync(file)
    const me = process.getuid?.()
    if (me !== undefined && uid !== me) {
      throw new ArgumentError(`The token in ${path} belongs to user ${uid}, not to this one (${me}); remove it, or set RANKMESH_TOKEN`)
    }
    if (me !== undefined && (mode & 0o077) !== 0) {
      const bits = (mode & 0o777).toString(8)
      throw new ArgumentError(`Others may read or write the token in ${path} (mode ${bits}); run: chmod 600 ${path}`)
    }
    return checkToken(readFileSync(file, 'utf8').trim(), path)
  } finally {
    closeSync(file)
  }
}

/** Writes a new token beside its place and links it there, so that nobody ever reads half of one; the first of several wins. */
function makeToken(path: string): string {
  const draft = `${path}.${randomBytes(6).toString('hex')}`
  try {
    mkdirSync(dirname(path), { recursive: true, mode: 0o700 })
    const file = openSync(draft, constants.O_WRONLY | constants.O_CREAT | constants.O_EXCL, 0o600)
    try {
      writeSync(file, `${randomBytes(32).toString('hex')}\n`)
    } finally {
      closeSync(file)
    }
    try {
      linkSync(draft, path)
    } catch (cause) {
      if ((cause as NodeJS.ErrnoException).code !== 'EEXIST') throw cause
    } finally {
      unlinkSync(draft)
    }
  } catch (cause) {
    throw new ArgumentError(`Cannot make a token in ${path}: ${(cause as Error).message}; set RANKMESH_TOKEN instead`, { cause })
  }
  return readToken(path) as string
}
