// Test projects, one after the other, two files at a time: `together`, whose files share processes, modules and GPU devices; `apart`, each in a process
// of its own, since they start others, change what this one is, or compute so much that what the engine learns from others slows them down; `alone`,
// slow beside others, since ranks wait for one another there by the hundred thousand; `models` needs large weights.
import { readFileSync } from 'node:fs'
import { defineConfig, type ViteUserConfig } from 'vitest/config'
import { BaseSequencer, type TestSpecification } from 'vitest/node'

const wgsl = {
  name: 'wgsl-as-text',
  enforce: 'pre' as const,
  load(id: string) {
    return id.endsWith('.wgsl') ? `export default ${JSON.stringify(readFileSync(id, 'utf8'))}` : undefined
  },
}

const shared = { pool: 'forks' as const, maxWorkers: 2, testTimeout: 120_000, hookTimeout: 120_000, setupFiles: ['test/support/setup.ts'] }

const ALONE = 'test/wire/shared.test.ts'
const APART = [
  'test/{browser,cli,cpu,examples,launch,model,native,package,wire}/**/*.test.ts',
  // Doubles of libraries take the places of those of the process.
  'test/**/*{cuda,nccl}*.test.ts',
  'test/comm/fusion*.test.ts',
]
const TOGETHER = ['test/{comm,core,device,nn,scheduler,shaders}/**/*.test.ts']

/** What takes longest comes first, lest one of these is left over at the end, when the other core has nothing more to do. */
const LONG = [
  'comm/conformance-placed',
  'comm/conformance',
  'wire/chaos',
  'launch/placements',
  'native/nccl',
  'nn/bundled',
  'native/cuda-ops',
  'native/cuda',
  'comm/faults',
]

class LongFirst extends BaseSequencer {
  override async sort(files: TestSpecification[]): Promise<TestSpecification[]> {
    const place = ({ moduleId }: TestSpecification): number => {
      const at = LONG.findIndex((name) => moduleId.endsWith(`/${name}.test.ts`))
      return at < 0 ? LONG.length : at
    }
    return (await super.sort(files)).sort((a, b) => place(a) - place(b))
  }
}

const config: ViteUserConfig = defineConfig({
  plugins: [wgsl],
  test: {
    globalSetup: 'test/support/temporary.ts',
    sequence: { sequencer: LongFirst },
    projects: [
      {
        extends: true,
        test: { ...shared, name: 'together', isolate: false, include: TOGETHER, exclude: APART },
      },
      {
        extends: true,
        test: { ...shared, name: 'apart', include: APART, exclude: [ALONE], sequence: { groupOrder: 1 } },
      },
      {
        extends: true,
        test: { ...shared, name: 'alone', include: [ALONE], maxWorkers: 1, sequence: { groupOrder: 2 } },
      },
      {
        extends: true,
        test: {
          ...shared,
          name: 'models',
          include: ['test/models/**/*.test.ts'],
          maxWorkers: 1,
          testTimeout: 1_800_000,
          sequence: { groupOrder: 3 },
        },
      },
    ],
  },
})
export default config
