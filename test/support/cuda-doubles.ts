// Builds the doubles of CUDA's libraries, once for each state of their sources: into a folder that test files and processes share.
import { execFile, spawnSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import { existsSync, mkdirSync, readdirSync, readFileSync, renameSync, rmSync, statSync, utimesSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { promisify } from 'node:util'

const run = promisify(execFile)
const root = join(import.meta.dirname, '../..')
const doubles = join(root, 'test/native/doubles')
const emulation = join(root, 'test/native/cuda')
const kernels = join(root, 'native/cuda')
const cache = join(root, 'node_modules/.cache/rankmesh-cuda-doubles')
const compiler = process.env.CXX ?? 'c++'
const INCLUDES = ['-I', kernels, '-I', emulation]
const FLAGS = [
  '-std=c++20',
  '-O2',
  '-fPIC',
  '-fvisibility=hidden',
  '-fvisibility-inlines-hidden',
  '-ffp-contract=off',
  '-Wno-unknown-pragmas',
]
/** Of kernels, which take longer to compile well than tests take to run: an access that is not aligned as a device needs it traps. */
const KERNELS = ['-Og', '-fsanitize=alignment', '-fsanitize-undefined-trap-on-error']
/** Files that nobody has used for so long are of sources that have changed. */
const KEPT_MS = 2 * 24 * 3600 * 1000
/** A build that has taken so long has been broken off. */
const STALE_MS = 10 * 60 * 1000

const DRIVER = [
  'settings',
  'memory',
  'work',
  'driver',
  'driver_errors',
  'driver_memory',
  'driver_multicast',
  'driver_streams',
  'driver_kernels',
  'driver_graphs',
  'kernels_own',
]
const OPS = ['kernels_ops']
const PEERS = ['kernels_peers', 'kernels_codes']

export interface Doubles {
  /** Of the driver. */
  cuda: string
  cublasLt: string
  nvml: string
  /** What takes the place of the file with the kernels, all of which are inside the driver's double. */
  kernels: string
  /** A program that checks that the driver's double keeps CUDA's rules. */
  check: string
}

/** Why they cannot be built here; empty where they can. */
export function obstacle(): string {
  if (process.platform !== 'linux') return `the doubles of CUDA's libraries are made for Linux`
  const version = spawnSync(compiler, ['--version'], { encoding: 'utf8' })
  return version.status === 0 ? '' : `no compiler ${compiler}`
}

/** @throws with what the compiler says where they do not build. */
export async function buildDoubles(): Promise<Doubles> {
  mkdirSync(cache, { recursive: true })
  forget()
  const headers = [
    ...listed(doubles, /\.h$/),
    ...listed(emulation, /^(emulation|multicasts|swift|thread|fiber)\.h$/),
    join(kernels, 'platform.cuh'),
  ]
  const all = listed(kernels, /\.cuh$|(_list|_arguments)\.h$/)
  const ops = listed(join(kernels, 'ops'), /\.(cuh|h)$/)
  const objects = [
    // What takes longest first.
    ...OPS.map((name) => ({ name, includes: [...headers, ...all, ...ops] })),
    ...PEERS.map((name) => ({ name, includes: [...headers, ...all] })),
    ...DRIVER.map((name) => ({ name, includes: headers })),
  ].map(({ name, includes }) => ({ name, target: named(`${name}.o`, [join(doubles, `${name}.cc`), ...includes]) }))
  const blas = join(doubles, 'cublaslt.cc')
  const nvml = join(doubles, 'nvml.cc')
  const check = join(doubles, 'check.cc')
  const folder = named('doubles', [...objects.map(({ target }) => target), blas, nvml, check, ...headers])
  const made = {
    cuda: join(folder, 'libcuda-double.so'),
    cublasLt: join(folder, 'libcublasLt-double.so'),
    nvml: join(folder, 'libnvidia-ml-double.so'),
    kernels: join(folder, 'kernels'),
    check: join(folder, 'check'),
  }
  await alone(folder, async () => {
    const left = objects.filter(({ target }) => !existsSync(target))
    const compile = async (): Promise<void> => {
      for (let next = left.shift(); next; next = left.shift()) {
        const { name, target } = next
        const flags = [...FLAGS, ...(name.startsWith('kernels') ? KERNELS : []), '-DEMULATION_SWIFT', ...INCLUDES]
        await into(target, (to) => run(compiler, [...flags, '-c', join(doubles, `${name}.cc`), '-o', to]))
      }
    }
    await Promise.all([compile(), compile()])
    await into(folder, async (to) => {
      mkdirSync(to)
      const driver = join(to, 'libcuda-double.so')
      await run(compiler, ['-shared', ...objects.map(({ target }) => target), '-o', driver, '-pthread', '-ldl'])
      const linked = ['-L', to, '-l:libcuda-double.so', '-Wl,-rpath,$ORIGIN']
      await Promise.all([
        run(compiler, [...FLAGS, '-shared', blas, '-o', join(to, 'libcublasLt-double.so'), ...linked]),
        run(compiler, [...FLAGS, '-shared', nvml, '-o', join(to, 'libnvidia-ml-double.so')]),
        run(compiler, [...FLAGS, ...INCLUDES, check, '-o', join(to, 'check'), '-pthread', '-ldl']),
      ])
      writeFileSync(join(to, 'kernels'), 'rankmesh double: its kernels are inside the library\n')
    })
  })
  return made
}

function listed(folder: string, names: RegExp): string[] {
  return readdirSync(folder)
    .filter((name) => names.test(name))
    .sort()
    .map((name) => join(folder, name))
}

const versions = new Map<string, string>()

/** A path in the cache that is another one wherever a file, or the compiler, is. Those in the cache are known by their names. */
function named(name: string, files: readonly string[]): string {
  const hash = createHash('sha256')
  if (!versions.has(compiler)) versions.set(compiler, spawnSync(compiler, ['--version'], { encoding: 'utf8' }).stdout)
  hash.update(JSON.stringify([versions.get(compiler), FLAGS, KERNELS]))
  for (const file of files) hash.update(file.startsWith(cache) ? file : readFileSync(file)).update('\0')
  const path = join(cache, `${hash.digest('hex').slice(0, 20)}-${name}`)
  if (existsSync(path)) utimesSync(path, new Date(), new Date())
  return path
}

/** Makes what is missing under another name first. */
async function into(path: string, make: (to: string) => Promise<unknown>): Promise<void> {
  const to = join(cache, `making-${process.pid}-${Math.random().toString(36).slice(2)}`)
  await make(to)
  try {
    renameSync(to, path)
  } catch (error) {
    if (!existsSync(path)) throw error
    rmSync(to, { recursive: true }) // somebody else was faster
  }
}

/** Makes `path`, unless another process does so now. */
async function alone(path: string, make: () => Promise<void>): Promise<void> {
  const lock = `${path}.lock`
  for (let waited = 0; !existsSync(path); ) {
    try {
      mkdirSync(lock)
    } catch {
      if (waited++ * 50 < STALE_MS) {
        await sleep(50)
        continue
      }
    }
    try {
      if (!existsSync(path)) await make()
    } finally {
      rmSync(lock, { recursive: true, force: true })
    }
  }
}

/** Removes what is old. */
function forget(): void {
  for (const name of readdirSync(cache)) {
    const path = join(cache, name)
    const age = Date.now() - (statSync(path, { throwIfNoEntry: false })?.mtimeMs ?? Date.now())
    if (age > (name.endsWith('.lock') ? STALE_MS : KEPT_MS)) rmSync(path, { recursive: true, force: true })
  }
}
