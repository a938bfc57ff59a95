// The declarations a TypeScript user gets: they build, and a program against them is checked for real.
import { execFile } from 'node:child_process'
import { mkdir, mkdtemp, rm, symlink, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { expect, it } from 'vitest'

const run = promisify(execFile)
const root = join(import.meta.dirname, '../..')
const tsc = join(root, 'node_modules/typescript/bin/tsc')

const PROGRAM = `import { LanguageModel, launch, Tensor } from 'rankmesh'
export const shapes: number[] = await launch({ ranks: 2 }, async ({ comm, device }) => {
  const y: Tensor = await comm.allReduce(Tensor.full([2], 1, { device }))
  return y.shape.length
})
// @ts-expect-error no such placement
await launch({ ranks: 1, placement: 'cloud' }, async () => 1)
// @ts-expect-error no such op
await launch({ ranks: 1 }, ({ comm, device }) => comm.allReduce(Tensor.full([1], 1, { device }), { op: 'median' }))
export type Token = ReturnType<LanguageModel['generate']> extends AsyncGenerator<infer T> ? T : never
export const id = (token: Token): number => token.id
`

it('types: the declarations build, and refuse what is wrong', async () => {
  await run(process.execPath, [tsc, '-p', join(root, 'tsconfig.build.json')])
  const folder = await mkdtemp(join(tmpdir(), 'rankmesh-types-'))
  try {
    await mkdir(join(folder, 'node_modules'))
    await symlink(root, join(folder, 'node_modules/rankmesh'), 'junction')
    await writeFile(join(folder, 'program.mts'), PROGRAM)
    const options = [
      '--noEmit',
      '--strict',
      '--module',
      'nodenext',
      '--target',
      'es2022',
      '--lib',
      'es2023,esnext.disposable',
      '--skipLibCheck',
      '--types',
      '',
    ]
    const { stdout } = await run(process.execPath, [tsc, ...options, join(folder, 'program.mts')], { cwd: folder }).catch((error) => error)
    expect(stdout).toBe('')
  } finally {
    await rm(folder, { recursive: true })
  }
})
