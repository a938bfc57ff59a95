// The store: keys and values, ranks that join and go, tokens, and what strangers send it.
import { randomBytes } from 'node:crypto'
import { connect, createServer, type Socket } from 'node:net'
import { afterEach, describe, expect, it, vi } from 'vitest'
import { StoreClient, type StoreClientOptions } from '../../runtime/comm/wire/store-client-node.ts'
import { greet } from '../../runtime/comm/wire/store-greeting-node.ts'
import { encodeFrame, type Fault, KIND, uint32s } from '../../runtime/comm/wire/store-protocol.ts'
import { StoreServer, type StoreServerOptions } from '../../runtime/comm/wire/store-server-node.ts'
import type { RankmeshError } from '../../runtime/core/errors.ts'
import { Random, seed } from '../support/random.ts'

const TOKEN = randomBytes(16).toString('hex')
const open: { close(): unknown }[] = []

afterEach(async () => {
  vi.restoreAllMocks()
  for (const one of open.splice(0).reverse()) await one.close()
})

async function serve(options: Partial<StoreServerOptions> = {}): Promise<StoreServer> {
  const server = await StoreServer.listen({ token: TOKEN, ...options })
  open.push(server)
  return server
}

async function come({ port }: { port: number }, options: Partial<StoreClientOptions> = {}): Promise<StoreClient> {
  const client = await StoreClient.connect({ host: '127.0.0.1', port, token: TOKEN, timeoutMs: 5000, ...options })
  open.push(client)
  return client
}

async function join(server: StoreServer, rank: number, size: number, options?: Partial<StoreClientOptions>): Promise<StoreClient> {
  const client = await come(server, options)
  await client.join(rank, size)
  return client
}

function errorOf(work: Promise<unknown>): Promise<RankmeshError> {
  return work.then(
    () => {
      throw new Error('it should have failed')
    },
    (error) => error,
  )
}

function faultOf(client: StoreClient): Promise<Fault> {
  return new Promise((resolve) => {
    if (client.fault) resolve(client.fault)
    else client.onFault(resolve)
  })
}

/** A bare connection, and what becomes of it. */
function stranger({ port }: StoreServer): { socket: Socket; closed: Promise<number> } {
  const socket = connect({ host: '127.0.0.1', port })
  socket.on('error', () => {})
  socket.resume()
  const start = performance.now()
  const closed = new Promise<number>((resolve) => void socket.on('close', () => resolve(performance.now() - start)))
  open.push({ close: () => socket.destroy() })
  return { socket, closed }
}

function silence(): string[] {
  const lines: string[] = []
  vi.spyOn(process.stderr, 'write').mockImplementation((text) => {
    lines.push(String(text))
    return true
  })
  return lines
}

describe('keys and values', () => {
  it('are there for all clients, whatever bytes they are', async () => {
    const value = seed()
    const random = new Random(value)
    const server = await serve()
    const [a, b] = [await come(server), await come(server)]
    for (const length of [0, 1, 100, 65_536, 1_000_000]) {
      const bytes = Uint8Array.from({ length }, () => random.int(256))
      const key = `key ${'ä'.repeat(random.int(50))} ${length}`
      await a.set(key, bytes)
      expect(Buffer.compare(await b.get(key, 1000), bytes), `seed ${value}`).toBe(0)
    }
  })

  it('get waits until somebody sets the key', async () => {
    const server = await serve()
    const [a, b] = [await come(server), await come(server)]
    const late = a.get('late', 5000)
    await new Promise((resolve) => setTimeout(resolve, 50))
    await b.set('late', Uint8Array.of(7))
    expect([...(await late)]).toEqual([7])
  })

  it('get gives up when the time is over, and says which key it was', async () => {
    const client = await come(await serve())
    const start = performance.now()
    expect(await errorOf(client.get('never', 100))).toMatchObject({
      code: 'ERR_TIMEOUT',
      message: expect.stringContaining('never (100 ms)'),
    })
    expect(performance.now() - start).toBeLessThan(1000)
  })

  it('add counts without losing any', async () => {
    const server = await serve()
    const clients = await Promise.all(Array.from({ length: 8 }, () => come(server)))
    const sums = await Promise.all(clients.flatMap((client) => Array.from({ length: 25 }, () => client.add('count'))))
    expect(sums.sort((x, y) => x - y)).toEqual(Array.from({ length: 200 }, (_, i) => i + 1))
    expect(await clients[0]!.add('count', -200)).toBe(0)
  })

  it('claim has one winner, whose value all get', async () => {
    const server = await serve()
    const clients = await Promise.all(Array.from({ length: 6 }, () => come(server)))
    const claims = await Promise.all(clients.map((client, i) => client.claim('place', Uint8Array.of(i))))
    expect(claims.filter(({ won }) => won)).toHaveLength(1)
    expect(new Set(claims.map(({ value }) => value[0])).size).toBe(1)
  })

  it('delete takes a key away', async () => {
    const client = await come(await serve())
    await client.set('key', Uint8Array.of(1))
    expect(await client.delete('key')).toBe(true)
    expect(await client.delete('key')).toBe(false)
    expect(await errorOf(client.get('key', 10))).toMatchObject({ code: 'ERR_TIMEOUT' })
  })

  it('a value that is too long is refused on this side', async () => {
    const client = await come(await serve())
    expect(await errorOf(client.set('key', new Uint8Array(2 ** 20)))).toMatchObject({ code: 'ERR_ARGUMENT' })
    await client.set('key', Uint8Array.of(1))
  })
})

describe('coming in', () => {
  it('a client waits for a store that is not there yet', async () => {
    const { port } = await serve().then(async (server) => {
      await server.close()
      return server
    })
    const early = StoreClient.connect({ host: '127.0.0.1', port, token: TOKEN, timeoutMs: 5000 })
    await new Promise((resolve) => setTimeout(resolve, 150))
    await serve({ port })
    const client = await early
    open.push(client)
    await client.set('key', Uint8Array.of(1))
  })

  it('not for ever', async () => {
    const server = await serve()
    await server.close()
    const error = await errorOf(StoreClient.connect({ host: '127.0.0.1', port: server.port, token: TOKEN, timeoutMs: 200 }))
    expect(error).toMatchObject({ code: 'ERR_TIMEOUT', message: expect.stringMatching(/ECONNREFUSED.*MASTER_ADDR and MASTER_PORT/) })
  })

  it('nor longer than its signal says', async () => {
    const server = await serve()
    await server.close()
    const controller = new AbortController()
    const early = StoreClient.connect({ host: '127.0.0.1', port: server.port, token: TOKEN, timeoutMs: 60_000, signal: controller.signal })
    setTimeout(() => controller.abort(new Error('enough')), 50)
    expect(await errorOf(early)).toMatchObject({ message: 'enough' })
  })

  it('a port that another program has is an error that says so', async () => {
    const { port } = await serve()
    expect(await errorOf(StoreServer.listen({ port, token: TOKEN }))).toMatchObject({
      code: 'ERR_ARGUMENT',
      message: expect.stringContaining('MASTER_PORT'),
    })
  })

  it('listens on this machine alone, unless told otherwise', async () => {
    expect((await serve()).host).toBe('127.0.0.1')
  })

  it('a wrong token is refused at once and reported in one line; the others go on', async () => {
    const lines = silence()
    const server = await serve()
    const good = await come(server)
    const start = performance.now()
    for (let i = 0; i < 3; i++) {
      const error = await errorOf(come(server, { token: `${TOKEN}x`, timeoutMs: 20_000 }))
      expect(error).toMatchObject({ code: 'ERR_ARGUMENT', message: expect.stringContaining('RANKMESH_TOKEN') })
    }
    expect(performance.now() - start).toBeLessThan(2000)
    expect(lines).toEqual([
      expect.stringMatching(/^rankmesh: the store at 127\.0\.0\.1:\d+ refused 127\.0\.0\.1:\d+: .*RANKMESH_TOKEN.*\n$/),
    ])
    await good.set('key', Uint8Array.of(1))
  })

  it('neither side ever sends the token', async () => {
    const server = await serve()
    const seen: Buffer[] = []
    const spy = createServer((inner) => {
      const outer = connect({ host: '127.0.0.1', port: server.port })
      inner.on('data', (chunk) => seen.push(chunk)).pipe(outer)
      outer.on('data', (chunk) => seen.push(chunk)).pipe(inner)
    })
    await new Promise<void>((resolve) => void spy.listen(0, '127.0.0.1', resolve))
    open.push(spy)
    const client = await come({ port: (spy.address() as { port: number }).port })
    await client.join(0, 1)
    client.close()
    const all = Buffer.concat(seen)
    expect(all.includes(TOKEN)).toBe(false)
    expect(all.includes(Buffer.from(TOKEN, 'hex'))).toBe(false)
    expect(all.byteLength).toBeGreaterThan(100)
  })

  it('a client does not trust who cannot prove that it knows the token', async () => {
    const impostor = createServer((socket) => {
      socket.on('error', () => {})
      const version = Uint8Array.of(1)
      socket.write(encodeFrame(KIND.hello, 0, '', Buffer.concat([Buffer.from('rankmesh'), version, randomBytes(32)])))
      socket.on('data', () => socket.write(encodeFrame(KIND.welcome, 0, '', randomBytes(36))))
    })
    await new Promise<void>((resolve) => void impostor.listen(0, '127.0.0.1', resolve))
    open.push(impostor)
    const { port } = impostor.address() as { port: number }
    expect(await errorOf(come({ port }))).toMatchObject({ code: 'ERR_ARGUMENT', message: expect.stringContaining('does not know') })
  })

  it('what is no store is an error that says so', async () => {
    const other = createServer((socket) => void socket.on('error', () => {}).end('HTTP/1.1 400 Bad Request\r\n\r\n'))
    await new Promise<void>((resolve) => void other.listen(0, '127.0.0.1', resolve))
    open.push(other)
    const { port } = other.address() as { port: number }
    expect(await errorOf(come({ port }))).toMatchObject({ code: 'ERR_ARGUMENT', message: expect.stringContaining('no store') })
  })
})

describe('strangers', () => {
  it('who send garbage are cut off; the others go on', async () => {
    const value = seed()
    const random = new Random(value)
    silence()
    const server = await serve()
    const good = await join(server, 0, 1)
    for (let i = 0; i < 50; i++) {
      const { socket, closed } = stranger(server)
      socket.write(Uint8Array.from({ length: 12 + random.int(2000) }, () => random.int(256)))
      const ended = await Promise.race([closed, new Promise((resolve) => setTimeout(resolve, 200, 'open'))])
      // A random length that is small enough makes the store wait for the rest, which the greeting's deadline ends.
      if (ended === 'open') socket.destroy()
      await good.set('key', Uint8Array.of(i))
    }
    expect(good.fault, `seed ${value}`).toBe(null)
  })

  it('who send a frame that is too long are cut off before it has come', async () => {
    silence()
    const server = await serve()
    for (const length of [513, 2 ** 31, 2 ** 32 - 1, 0, 10]) {
      const { socket, closed } = stranger(server)
      socket.write(Buffer.from(Uint32Array.of(length).buffer))
      expect(await closed, `${length}`).toBeLessThan(1000)
    }
  })

  it('who ask before they have proven anything get nothing', async () => {
    silence()
    const server = await serve()
    await (await come(server)).set('secret', Buffer.from('secret value'))
    const { socket, closed } = stranger(server)
    const got: Buffer[] = []
    socket.on('data', (chunk) => got.push(chunk))
    socket.write(encodeFrame(KIND.get, 1, 'secret', new Uint8Array(4)))
    await closed
    expect(Buffer.concat(got).includes('secret value')).toBe(false)
  })

  it('who have proven themselves and then send garbage are cut off, and their rank is gone', async () => {
    silence()
    const server = await serve()
    const a = await join(server, 0, 2)
    const { port } = server
    const { socket } = await greet({ host: '127.0.0.1', port, token: TOKEN, timeoutMs: 5000 }, () => connect({ port, host: '127.0.0.1' }))
    const closed = new Promise(
      (resolve) =>
        void socket
          .on('close', resolve)
          .on('error', () => {})
          .resume(),
    )
    socket.write(encodeFrame(KIND.join, 1, '', uint32s(1, 2)))
    socket.write(encodeFrame(99))
    await closed
    expect(await faultOf(a)).toMatchObject({ rank: 1 })
  })

  it('who say nothing are cut off', async () => {
    const server = await serve({ greetingMs: 200 })
    const { closed } = stranger(server)
    expect(await closed).toBeGreaterThan(150)
  })

  it('cannot keep ranks out by being many', async () => {
    silence()
    const server = await serve({ greetingMs: 300 })
    const crowd = Array.from({ length: 100 }, () => stranger(server))
    await join(server, 0, 1)
    await Promise.all(crowd.map(({ closed }) => closed))
  })
})

describe('ranks', () => {
  it('of another world size are refused', async () => {
    const server = await serve({ size: 2 })
    await join(server, 0, 2)
    expect(await errorOf(join(server, 1, 3))).toMatchObject({ code: 'ERR_ARGUMENT', message: expect.stringContaining('WORLD_SIZE') })
    expect(await errorOf(join(server, 2, 2))).toMatchObject({ code: 'ERR_ARGUMENT', message: expect.stringContaining('[0, 1]') })
  })

  it('that come twice are refused; the first goes on', async () => {
    const server = await serve()
    const [a, b] = [await join(server, 0, 2), await join(server, 1, 2)]
    const error = await errorOf(join(server, 1, 2))
    expect(error).toMatchObject({ code: 'ERR_ARGUMENT', message: expect.stringContaining('Rank 1 is taken') })
    await b.set('key', Uint8Array.of(1))
    await a.get('key', 1000)
    expect(a.fault).toBe(null)
  })

  it('that drop without leaving are missed by all others at once', async () => {
    const server = await serve()
    const clients = await Promise.all(Array.from({ length: 5 }, (_, rank) => join(server, rank, 5)))
    const start = performance.now()
    clients[3]!.close()
    const others = clients.filter((_, rank) => rank !== 3)
    for (const fault of await Promise.all(others.map(faultOf))) {
      expect(fault).toMatchObject({ code: 'ERR_RANK_FAILED', rank: 3, message: expect.stringContaining('Rank 3') })
    }
    expect(performance.now() - start).toBeLessThan(1000)
  })

  it('that join late hear what has happened', async () => {
    const server = await serve()
    const first = await join(server, 0, 2)
    first.close()
    await vi.waitFor(async () => {
      const late = await join(server, 1, 2)
      await late.leave()
      expect(late.fault).toMatchObject({ rank: 0 })
    })
  })

  it('that leave are missed by nobody', async () => {
    const server = await serve()
    const [a, b] = [await join(server, 0, 2), await join(server, 1, 2)]
    await b.leave()
    b.close()
    await new Promise((resolve) => setTimeout(resolve, 100))
    await a.set('key', Uint8Array.of(1))
    expect(a.fault).toBe(null)
  })

  it('tell of faults; of one group the first counts, everywhere', async () => {
    const server = await serve()
    const clients = await Promise.all(Array.from({ length: 3 }, (_, rank) => join(server, rank, 3)))
    const heard = clients.map(faultOf)
    await Promise.all(
      clients.map((client, rank) => client.fail({ code: 'ERR_TIMEOUT', message: `from ${rank}`, rank: (rank + 1) % 3, scope: 'group' })),
    )
    const faults = await Promise.all(heard)
    expect(new Set(faults.map(({ message }) => message)).size).toBe(1)
    expect(clients.map(({ faults }) => faults.length)).toEqual([1, 1, 1])
  })

  it('tell each other things', async () => {
    const server = await serve()
    const [a, b, c] = await Promise.all([0, 1, 2].map((rank) => join(server, rank, 3)))
    const got: string[] = []
    a!.onNotice('topic', () => got.push('a'))
    b!.onNotice('topic', (value) => got.push(`b ${value[0]}`))
    c!.onNotice('other', () => got.push('c'))
    await a!.notify('topic', Uint8Array.of(9))
    await vi.waitFor(() => expect(got).toEqual(['b 9']))
  })

  it('whose machine gives no sign of life any more are missed', async () => {
    const server = await serve({ beatMs: 50, deadMs: 400 })
    const alive = await join(server, 0, 2, { beatMs: 50, deadMs: 400 })
    const mute = await join(server, 1, 2, { beatMs: 3_600_000 })
    const start = performance.now()
    expect(await faultOf(alive)).toMatchObject({ rank: 1, message: expect.stringContaining('no sign of life') })
    expect(performance.now() - start).toBeGreaterThan(300)
    mute.close()
  })

  it('hear it when the store is gone, whom its host is', async () => {
    const server = await serve({ rank: 2 })
    const clients = await Promise.all([0, 1].map((rank) => join(server, rank, 3)))
    const waiting = errorOf(clients[0]!.get('never', 60_000))
    await server.close()
    for (const fault of await Promise.all(clients.map(faultOf))) expect(fault).toMatchObject({ code: 'ERR_RANK_FAILED', rank: 2 })
    expect(await waiting).toMatchObject({ code: 'ERR_RANK_FAILED', rank: 2 })
    expect(await errorOf(clients[1]!.set('key', Uint8Array.of(1)))).toMatchObject({ code: 'ERR_RANK_FAILED', rank: 2 })
  })

  it('may be many', async () => {
    const server = await serve()
    const size = 200
    const clients = await Promise.all(Array.from({ length: size }, (_, rank) => join(server, rank, size, { timeoutMs: 20_000 })))
    await Promise.all(clients.map((client, rank) => client.set(`at ${rank}`, Uint8Array.of(rank))))
    const all = await Promise.all(clients.map((client, rank) => client.get(`at ${(rank + 1) % size}`, 5000)))
    expect(all.map((value) => value[0])).toEqual(all.map((_, rank) => ((rank + 1) % size) & 255))
  })
})

describe('the end', () => {
  it('waits until all others have left, and then nothing listens', async () => {
    const server = await serve()
    const [a, b] = [await join(server, 0, 2), await join(server, 1, 2)]
    let closed = false
    const closing = server.close(10_000).then(() => {
      closed = true
    })
    await new Promise((resolve) => setTimeout(resolve, 50))
    expect(closed).toBe(false)
    await b.leave()
    await closing
    expect(b.fault).toBe(null)
    a.close()
    const { socket, closed: refused } = stranger(server)
    let connected = false
    socket.on('connect', () => {
      connected = true
    })
    await refused
    expect(connected).toBe(false)
  })

  it('does not wait for ever', async () => {
    const server = await serve()
    await join(server, 1, 2)
    const start = performance.now()
    await server.close(100)
    expect(performance.now() - start).toBeLessThan(1000)
  })
})
