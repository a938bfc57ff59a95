// Every kernel, with every prelude it is used with, compiles; its file tells what it does; its bindings are what the registry says.
import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { describe, expect, it } from 'vitest'
import { BLOCK_DTYPES, type BlockDType } from '../../runtime/core/dtype.ts'
import { accessOf, KERNEL_NAMES, type KernelName, type Prelude, program, type WeightPrelude } from '../../runtime/device/webgpu/shaders.ts'

const SHADERS = join(import.meta.dirname, '../../shaders')

const FLOATS = ['f32', 'bf16', 'f16'] as const
const NARROW_ROWS = ['f32x1', 'bf16x1', 'f16x1'] as const
const BLOCKS = Object.keys(BLOCK_DTYPES) as BlockDType[]
const NUMBERS = [...FLOATS, 'i32', 'u32'] as const

type Types = readonly [element?: Prelude, weight?: WeightPrelude]
type Constants = Readonly<Record<string, number>>

const PLAIN: readonly Types[] = [[]]
const ELEMENTWISE: readonly Types[] = NUMBERS.map((element) => [element] as const)
const ROWS: readonly Types[] = [...FLOATS, ...NARROW_ROWS].map((element) => [element] as const)
const MIXED: readonly Types[] = FLOATS.flatMap((element) => FLOATS.map((weight) => [element, weight] as const))
const NARROW: readonly Types[] = NARROW_ROWS.map((element) => [element, 'f32x1'] as const)
const IN_BLOCKS: readonly Types[] = FLOATS.flatMap((element) => BLOCKS.map((weight) => [element, weight] as const))
const WEIGHTED: readonly Types[] = [...MIXED, ...NARROW, ...IN_BLOCKS]

const WORKGROUPS: readonly Constants[] = [{ WG: 4 }, { WG: 16 }, { WG: 64 }, { WG: 256 }]

/** Each set of constants of `a` joined with each of `b`. */
function cross(a: readonly Constants[], b: readonly Constants[]): Constants[] {
  return a.flatMap((x) => b.map((y) => ({ ...x, ...y })))
}

const FLAGS = (name: string): Constants[] => [{ [name]: 0 }, { [name]: 1 }]

/** What the device and the collectives build. */
const USES: Record<KernelName, { types: readonly Types[]; constants: readonly Constants[] }> = {
  add: { types: ELEMENTWISE, constants: WORKGROUPS },
  all_reduce: {
    types: [...MIXED, ['i32', 'i32'], ['u32', 'u32']],
    constants: cross(
      WORKGROUPS,
      [0, 1, 2, 3, 4].map((OP) => ({ OP })),
    ),
  },
  all_reduce_fusion: {
    types: MIXED,
    constants: [
      { WG: 4, SUM_ONLY: 1, ROUND_SUMS: 1 },
      { WG: 4, PRE_NORM: 1, RANKS: 2 },
      ...cross(
        [0, 1, 2, 3, 4].map((QUANT) => ({ QUANT, WG: 256 })),
        FLAGS('NORM_OUT'),
      ),
    ],
  },
  all_reduce_rms_norm: {
    types: [...MIXED, ...NARROW],
    constants: cross(cross(WORKGROUPS, FLAGS('PORTABLE')), cross(FLAGS('HAS_BIAS'), FLAGS('ZERO_CENTERED'))),
  },
  attention: { types: PLAIN, constants: [{ WG: 4 }, { WG: 16 }, { WG: 32 }] },
  attention_portable: { types: PLAIN, constants: [{ WG: 4 }, { WG: 32 }] },
  cast: { types: MIXED, constants: WORKGROUPS },
  copy: { types: [['u32'], ['u32x1']], constants: WORKGROUPS },
  copy_bytes: { types: PLAIN, constants: WORKGROUPS },
  embedding: { types: WEIGHTED, constants: WORKGROUPS },
  matmul: {
    types: WEIGHTED,
    constants: cross(
      [1, 4, 8].map((TOKENS) => ({ WG: 16, TOKENS })),
      FLAGS('HAS_BIAS'),
    ),
  },
  matmul_tree: {
    types: [...MIXED, ...IN_BLOCKS],
    constants: cross(
      [1, 4].map((TOKENS) => ({ WG: 16, TOKENS })),
      cross(FLAGS('HAS_BIAS'), FLAGS('WHOLE')),
    ),
  },
  matmul_tiled: { types: WEIGHTED, constants: FLAGS('HAS_BIAS') },
  matvec: {
    types: WEIGHTED,
    constants: cross(
      [
        { WG: 64, LANES_PER_ROW: 1 },
        { WG: 256, LANES_PER_ROW: 16 },
      ],
      FLAGS('HAS_BIAS'),
    ),
  },
  moe_combine: {
    types: FLOATS.map((element) => [element] as const),
    constants: cross(WORKGROUPS, cross(FLAGS('DENSE'), FLAGS('HAS_SCALE'))),
  },
  rms_norm: { types: ROWS, constants: cross(cross(WORKGROUPS, FLAGS('PORTABLE')), FLAGS('ZERO_CENTERED')) },
  rope: { types: PLAIN, constants: WORKGROUPS },
  silu_mul: { types: ROWS, constants: cross(WORKGROUPS, FLAGS('PORTABLE')) },
  softmax: { types: PLAIN, constants: WORKGROUPS },
  top_k: { types: PLAIN, constants: WORKGROUPS },
  tree_sum: { types: PLAIN, constants: WORKGROUPS },
}

/** Dawn's null backend validates everything and computes nothing: it needs no Vulkan. */
async function nullDevice(): Promise<{ device: GPUDevice; gpu: object }> {
  const { create, globals } = (await import('webgpu')) as unknown as { create(options: string[]): GPU; globals: object }
  Object.assign(globalThis, globals)
  const gpu = create(['backend=null'])
  const adapter = await gpu.requestAdapter()
  return { device: await (adapter as GPUAdapter).requestDevice(), gpu }
}

const { device, gpu } = await nullDevice()

describe('every program compiles', () => {
  for (const name of KERNEL_NAMES) {
    const { types, constants } = USES[name]
    it(`${name}: ${types.length} element types, ${constants.length} sets of constants`, async () => {
      expect(gpu).toBeDefined() // the instance must outlive its device
      for (const [element, weight] of types) {
        const label = [name, element, weight].filter(Boolean).join(' ')
        device.pushErrorScope('validation')
        const module = device.createShaderModule({ label, code: program(name, element, weight) })
        const { messages } = await module.getCompilationInfo()
        expect(
          messages.map(({ message, lineNum }) => `${label} line ${lineNum}: ${message}`),
          label,
        ).toEqual([])
        for (const set of constants) {
          device.pushErrorScope('validation')
          device.createComputePipeline({ layout: 'auto', compute: { module, entryPoint: 'main', constants: { ...set } } })
          const error = await device.popErrorScope()
          expect(error?.message ?? '', `${label} ${JSON.stringify(set)}`).toBe('')
        }
        const error = await device.popErrorScope()
        expect(error?.message ?? '', label).toBe('')
      }
    })
  }
})

const kernelFiles = readdirSync(SHADERS).filter((file) => file.endsWith('.wgsl'))
const preludeFiles = readdirSync(join(SHADERS, 'prelude')).filter((file) => file.endsWith('.wgsl'))
const read = (file: string): string => readFileSync(join(SHADERS, file), 'utf8')

/** The comment a file opens with, as one line. */
function heading(text: string): string {
  const lines = text.split('\n')
  const end = lines.findIndex((line) => !line.startsWith('//'))
  return lines
    .slice(0, end)
    .map((line) => line.slice(2).trim())
    .join(' ')
}

describe('files', () => {
  it('are all registered, and all registered are files', () => {
    expect(kernelFiles.map((file) => file.replace('.wgsl', '')).sort()).toEqual([...KERNEL_NAMES].sort())
    const registry = readFileSync(join(SHADERS, '../runtime/device/webgpu/shaders.ts'), 'utf8')
    for (const file of preludeFiles) expect(registry).toContain(`/shaders/prelude/${file}'`)
  })

  for (const file of preludeFiles) {
    it(`prelude/${file} begins with a sentence`, () => expect(heading(read(`prelude/${file}`))).toMatch(/^[A-Z].{30,}/))
  }

  for (const file of kernelFiles) {
    const name = file.replace('.wgsl', '') as KernelName
    it(`${file} states formula, operands, grid and numeric contract, and binds what the registry says`, () => {
      const text = read(file)
      const head = heading(text)
      expect(head.length).toBeGreaterThan(80)
      expect(head, 'a formula').toMatch(/ = |holds \(cos, sin\)/)
      expect(head).toMatch(/Operands(: 1 | as in )/)
      expect(head).toMatch(/Grid: /)
      expect(head).toMatch(/Contract: |Exact /)
      const bindings = [...text.matchAll(/@group\(0\) @binding\((\d)\) var<(uniform|storage, read|storage, read_write)>/g)]
      expect(bindings.map((match) => Number(match[1]))).toEqual(bindings.map((_, i) => i))
      expect(bindings[0]?.[2]).toBe('uniform')
      const access = bindings.slice(1).map((match) => (match[2] === 'storage, read_write' ? 'w' : 'r'))
      expect(access.join('')).toBe(accessOf(name))
      for (const operand of head.includes('Operands as in') ? [] : access.keys()) expect(head).toContain(`${operand + 1} `)
    })
  }
})
