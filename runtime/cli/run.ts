// `rankmesh run`: starts a script once per rank, each in a process of its own, and sees to it that all of them end together.
import { createHash, randomBytes } from 'node:crypto'
import { accessSync, constants, readFileSync, statSync } from 'node:fs'
import { createServer } from 'node:net'
import { delimiter, join } from 'node:path'
import { parseArgs } from 'node:util'
import { ArgumentError } from '../core/errors.ts'
import { MAX_RANKS } from '../scheduler/launch.ts'
import { type Command, runTogether } from './processes.ts'

const OPTIONS = {
  n: { type: 'string', short: 'n' },
  nnodes: { type: 'string' },
  'node-rank': { type: 'string' },
  master: { type: 'string' },
  'token-file': { type: 'string' },
} as const

/** Nodes of one run: as many as ranks can be. */
const MAX_NODES = 64

/**
 * Every process gets RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, GROUP_RANK, GROUP_WORLD_SIZE, MASTER_ADDR, MASTER_PORT (as torchrun
 * sets them), RANKMESH_RUN_ID and RANKMESH_TOKEN: the secret by which ranks know each other. On one node that is fresh for each run unless
 * a file is named; on several it is the file's, or the environment's, or absent. Every node starts the same number of ranks.
 * @returns the exit code of the first rank that failed, 128 + its number for a signal; 0 where none did.
 * @throws ERR_ARGUMENT before any process is started.
 */
export async function run(args: readonly string[]): Promise<number> {
  const { own, rest } = splitAtScript(args)
  const { values } = parseArgs({ args: own, options: OPTIONS })
  const [script, ...scriptArgs] = rest
  if (script === undefined) throw new ArgumentError('Expected a script to run: rankmesh run -n 4 script.js; see rankmesh --help')
  const ranks = integer('-n', values.n ?? '1', 1, MAX_RANKS)
  const nodes = integer('--nnodes', values.nnodes ?? '1', 1, MAX_NODES)
  if (nodes === 1 && (values['node-rank'] ?? '0') !== '0') throw new ArgumentError('--node-rank needs --nnodes, the number of nodes')
  if (nodes > 1 && (values['node-rank'] === undefined || values.master === undefined))
    throw new ArgumentError(`With --nnodes ${nodes}, give each node its own --node-rank and all the same --master HOST:PORT`)
  const node = integer('--node-rank', values['node-rank'] ?? '0', 0, nodes - 1)
  const master = values.master === undefined ? { host: '127.0.0.1', port: undefined } : parseMaster(values.master)
  const token = values['token-file'] === undefined ? undefined : readToken(values['token-file'])
  const command = commandOf(script, scriptArgs)
  const port = master.port ?? (await freePort(master.host))
  const world = {
    WORLD_SIZE: ranks * nodes,
    LOCAL_WORLD_SIZE: ranks,
    GROUP_RANK: node,
    GROUP_WORLD_SIZE: nodes,
    MASTER_ADDR: master.host,
    MASTER_PORT: port,
    RANKMESH_RUN_ID:
      nodes === 1 ? randomBytes(8).toString('hex') : process.env.RANKMESH_RUN_ID || nameOf(`${values.master} ${nodes} ${ranks}`),
    ...(nodes === 1 ? { RANKMESH_TOKEN: token ?? randomBytes(32).toString('hex') } : token !== undefined && { RANKMESH_TOKEN: token }),
  }
  const commands = Array.from({ length: ranks }, (_, local): Command & { rank: number } => {
    const rank = node * ranks + local
    return { ...command, rank, env: { ...process.env, ...strings({ ...world, RANK: rank, LOCAL_RANK: local }) } }
  })
  return runTogether(commands)
}

/** Options of ours up to the script or `--`; what follows is the script's, dashes and all. Every option of ours takes a value. */
function splitAtScript(args: readonly string[]): { own: string[]; rest: string[] } {
  let at = 0
  while (at < args.length && (args[at] as string).startsWith('-') && args[at] !== '--') {
    const arg = args[at] as string
    at += arg.includes('=') || /^-[^-]./.test(arg) ? 1 : 2
  }
  return { own: args.slice(0, at), rest: args.slice(args[at] === '--' ? at + 1 : at) }
}

/** JavaScript and TypeScript run in this Node, anything else as a command. @throws ERR_ARGUMENT where it is not there. */
function commandOf(script: string, args: readonly string[]): { file: string; args: string[]; node: boolean } {
  if (/\.[cm]?[jt]s$/.test(script)) {
    if (!isFile(script, constants.R_OK))
      throw new ArgumentError(`Expected a script to run, but there is no readable file ${JSON.stringify(script)}`)
    return { file: process.execPath, args: [script, ...args], node: true }
  }
  const windows = process.platform === 'win32'
  const places = /[/\\]/.test(script) ? [script] : (process.env.PATH ?? '').split(delimiter).map((folder) => join(folder, script))
  if (!places.some((path) => isFile(path, constants.X_OK) || (windows && isFile(`${path}.exe`, constants.X_OK))))
    throw new ArgumentError(
      `Expected a script (.js, .mjs, .cjs, .ts) or a command, but ${JSON.stringify(script)} is no executable ${places.length > 1 ? 'on the PATH' : 'file'}`,
    )
  return { file: script, args: [...args], node: false }
}

function isFile(path: string, mode: number): boolean {
  try {
    accessSync(path, mode)
    return statSync(path).isFile()
  } catch {
    return false
  }
}

function parseMaster(text: string): { host: string; port: number } {
  const [, bracketed, plain, port] = /^(?:\[([^\]\s]+)\]|([^:\s]+)):(\d{1,5})$/.exec(text) ?? []
  const host = bracketed ?? plain
  if (host === undefined || Number(port) < 1 || Number(port) > 65535)
    throw new ArgumentError(`Expected HOST:PORT for --master but received ${JSON.stringify(text)}`)
  return { host, port: Number(port) }
}

function readToken(file: string): string {
  let text: string
  try {
    text = readFileSync(file, 'utf8').trim()
  } catch (cause) {
    throw new ArgumentError(`Cannot read the file of --token-file: ${(cause as Error).message}`, { cause })
  }
  if (text === '')
    throw new ArgumentError(`The file of --token-file, ${JSON.stringify(file)}, is empty; expected the ranks' shared secret in it`)
  return text
}

/** Asks the system by binding. Until rank 0 binds it again another program may take it: the run then fails with rank 0's error. */
function freePort(host: string): Promise<number> {
  return new Promise((resolve, reject) => {
    const server = createServer()
    server.once('error', reject)
    server.listen(0, host, () => {
      const { port } = server.address() as { port: number }
      server.close(() => resolve(port))
    })
  })
}

/** The same on every node of a run, without asking one another. */
function nameOf(text: string): string {
  return createHash('sha256').update(text).digest('hex').slice(0, 16)
}

function integer(name: string, text: string, min: number, max: number): number {
  const value = /^\d{1,9}$/.test(text) ? Number(text) : Number.NaN
  if (!(value >= min && value <= max))
    throw new ArgumentError(`Expected an integer in [${min}, ${max}] for ${name} but received ${JSON.stringify(text)}`)
  return value
}

function strings(values: Record<string, string | number>): Record<string, string> {
  return Object.fromEntries(Object.entries(values).map(([name, value]) => [name, String(value)]))
}
