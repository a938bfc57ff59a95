// How the addon is found: from the sources, from the bundle, by RANKMESH_ADDON; and what is said where it is not.
import { execFile } from 'node:child_process'
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { build } from 'esbuild'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import type { AddonReport } from '../../runtime/core/addon-node.ts'
import { addon, reason } from './members.ts'

const run = promisify(execFile)
const root = join(import.meta.dirname, '../..')
let folder = ''
let bundle = ''

beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'rankmesh-loader-'))
  bundle = join(folder, 'bundle.mjs')
  const contents =
    "import { addonReport, loadAddon } from './addon-node.ts'\nconsole.log(JSON.stringify({ ...addonReport(), loaded: !!loadAddon() }))\n"
  const { outputFiles } = await build({
    stdin: { contents, resolveDir: join(root, 'runtime/core'), loader: 'ts' },
    bundle: true,
    format: 'esm',
    platform: 'node',
    packages: 'external',
    write: false,
  })
  await writeFile(bundle, outputFiles[0]!.text)
})
afterAll(() => rm(folder, { recursive: true }))

async function report(setting: string): Promise<AddonReport & { loaded: boolean }> {
  const { stdout, stderr } = await run(process.execPath, [bundle], { env: { ...process.env, RANKMESH_ADDON: setting } })
  expect(stderr).toBe('')
  return JSON.parse(stdout)
}

describe('the loader', () => {
  it('RANKMESH_ADDON=off leaves the addon out, and says so', async () => {
    const { loaded, path, tried } = await report('off')
    expect({ loaded, path, tried }).toEqual({
      loaded: false,
      path: null,
      tried: [{ what: 'RANKMESH_ADDON=off', outcome: 'not loaded, as asked for' }],
    })
  })

  it('a path that holds nothing, or no addon, is reported with the reason; nothing throws', async () => {
    const absent = await report(join(folder, 'absent.node'))
    expect(absent).toMatchObject({ loaded: false, path: null, tried: [{ what: join(folder, 'absent.node'), outcome: 'not there' }] })
    const broken = join(folder, 'broken.node')
    await writeFile(broken, 'not an addon')
    expect((await report(broken)).tried[0]?.outcome).not.toMatch(/^(loaded|not there)$/)
    const other = join(folder, 'other.cjs')
    await writeFile(other, 'exports.features = () => ({})')
    expect((await report(other)).tried[0]?.outcome).toMatch(/of another version: it lacks post, wait/)
  })

  it('where nothing is built, all places are named, and one command', async () => {
    await writeFile(join(folder, 'package.json'), '{}')
    const { loaded, tried, command } = await report('')
    expect(loaded).toBe(false)
    expect(tried).toEqual([
      { what: join(folder, 'build/Release/rankmesh.node'), outcome: 'not there' },
      { what: `@rankmesh/native-${process.platform}-${process.arch}`, outcome: 'not there' },
    ])
    expect(command).toBe('npm run build:native')
  })

  it.skipIf(!addon)(`loads by path from a bundle${reason}`, async () => {
    const found = await report(process.env.RANKMESH_ADDON || join(root, 'build/Release/rankmesh.node'))
    expect(found).toMatchObject({ loaded: true, features: addon!.features() })
  })
})
