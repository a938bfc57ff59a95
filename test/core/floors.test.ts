// The floors of runtime/: a file imports from its own floor or from below; what needs Node is kept to few files; files open with a comment.
import { readdirSync, readFileSync } from 'node:fs'
import { dirname, join, normalize, relative, sep } from 'node:path'
import { describe, expect, it } from 'vitest'

const ROOT = join(import.meta.dirname, '../..')

/** Ground floor first; the entries of the package lie above all. */
const FLOORS = ['core', 'device', 'comm', 'scheduler', 'nn', 'model', 'cli']
const ENTRIES = ['runtime/index.ts', 'runtime/browser.ts', 'runtime/api.ts']

/** Files that may import from Node; everything else must run in a page. Dynamic imports are free. */
const NODE_FILES = [/-node\.ts$/, /\/software-vulkan\.ts$/, /\/source-file\.ts$/, /^runtime\/cli\//]

function filesUnder(folder: string): string[] {
  const entries = readdirSync(join(ROOT, folder), { recursive: true, withFileTypes: true })
  return entries
    .filter((entry) => entry.isFile())
    .map((entry) => relative(ROOT, join(entry.parentPath, entry.name)).split(sep).join('/'))
    .sort()
}

function floorOf(path: string): number {
  if (ENTRIES.includes(path)) return FLOORS.length
  const [top, folder = ''] = path.split('/')
  return top === 'runtime' ? FLOORS.indexOf(folder) : -1
}

/** Specifiers of static imports and re-exports. */
function importsOf(text: string): string[] {
  const code = text.replaceAll(/\/\*[\s\S]*?\*\//g, '').replaceAll(/^\s*\/\/.*$/gm, '')
  const from = [...code.matchAll(/^\s*(?:import|export)\b[^'"`;]*?\bfrom\s*['"]([^'"]+)['"]/gms)]
  const bare = [...code.matchAll(/^\s*import\s*['"]([^'"]+)['"]/gm)]
  return [...from, ...bare].map((match) => match[1]!)
}

/** What is wrong with a file's imports, as sentences. */
function complaints(path: string, text: string): string[] {
  const own = floorOf(path)
  const wrong: string[] = []
  if (own < 0) wrong.push(`${path} lies on no floor`)
  for (const specifier of importsOf(text)) {
    if (specifier.startsWith('node:')) {
      if (!NODE_FILES.some((pattern) => pattern.test(path))) wrong.push(`${path} imports ${specifier}, which a page does not have`)
      continue
    }
    if (!specifier.startsWith('.')) continue
    const target = normalize(join(dirname(path), specifier))
      .split(sep)
      .join('/')
    if (target.startsWith('shaders/')) {
      if (own !== FLOORS.indexOf('device')) wrong.push(`${path} imports ${target}; only device does`)
      continue
    }
    const floor = floorOf(target)
    if (floor < 0) wrong.push(`${path} imports ${target}, which lies on no floor`)
    else if (floor > own) wrong.push(`${path} imports ${target} from a higher floor`)
  }
  return wrong
}

describe('floors', () => {
  const sources = filesUnder('runtime').filter((path) => path.endsWith('.ts'))

  it('there are files on them', () => {
    expect(sources.length).toBeGreaterThan(40)
    for (const floor of ['core', 'device', 'comm', 'scheduler'])
      expect(sources.some((path) => floorOf(path) === FLOORS.indexOf(floor))).toBe(true)
  })

  it('no file imports from a higher floor, nor Node where a page must do', () => {
    expect(sources.flatMap((path) => complaints(path, readFileSync(join(ROOT, path), 'utf8')))).toEqual([])
  })

  it('imports are found in every form', () => {
    const text = `
      import a from './a.ts'
      import { type B,
        c } from "./bc.ts"
      import type { D } from './d.ts'
      import * as e from './e.ts'
      import './f.ts'
      export { g } from './g.ts'
      export * from './h.ts'
      // import i from './i.ts'
      /* import j from './j.ts' */
      const k = await import('./k.ts')
    `
    const found = importsOf(text).sort()
    expect(found).toEqual(['./a.ts', './bc.ts', './d.ts', './e.ts', './f.ts', './g.ts', './h.ts'])
  })

  const BAD: Record<string, [path: string, text: string]> = {
    'a higher floor': ['runtime/core/x.ts', "import { launch } from '../scheduler/launch.ts'"],
    'a higher floor, as a type': ['runtime/device/webgpu/x.ts', "import type { Communicator } from '../../comm/communicator.ts'"],
    'a higher floor, re-exported': ['runtime/comm/x.ts', "export * from '../nn/linear.ts'"],
    'the entry': ['runtime/model/x.ts', "import { Tensor } from '../index.ts'"],
    'a shader above device': ['runtime/comm/x.ts', "import text from '../../shaders/add.wgsl'"],
    'the tests': ['runtime/core/x.ts', "import { seed } from '../../test/support/random.ts'"],
    Node: ['runtime/comm/x.ts', "import { readFileSync } from 'node:fs'"],
    'a folder without a floor': ['runtime/misc/x.ts', ''],
  }
  for (const [name, [path, text]] of Object.entries(BAD)) {
    it(`an import of ${name} is complained about`, () => expect(complaints(path, text)).toHaveLength(1))
  }

  it('an import from below, from Node where it may be, or a dynamic one is not', () => {
    expect(complaints('runtime/nn/x.ts', "import { Tensor } from '../core/tensor.ts'\nimport { y } from './y.ts'")).toEqual([])
    expect(complaints('runtime/device/webgpu/x-node.ts', "import fs from 'node:fs'")).toEqual([])
    expect(complaints('runtime/cli/x.ts', "import fs from 'node:fs'\nimport { launch } from '../scheduler/launch.ts'")).toEqual([])
    expect(complaints('runtime/comm/x.ts', "const fs = await import('node:fs')")).toEqual([])
    expect(complaints('runtime/index.ts', "export * from './api.ts'")).toEqual([])
  })
})

describe('files', () => {
  it('every source and shader opens with a comment', () => {
    const files = [...filesUnder('runtime'), ...filesUnder('shaders')].filter((path) => /\.(ts|wgsl)$/.test(path))
    const bare = files.filter((path) => !/^(#!.*\n)?\/\/ \S.{10,}/.test(readFileSync(join(ROOT, path), 'utf8')))
    expect(bare).toEqual([])
  })
})
