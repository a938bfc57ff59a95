// Serves the repository to this machine's own browser: npm run build && node examples/browser/serve.mjs [PORT]
import { createReadStream } from 'node:fs'
import { stat } from 'node:fs/promises'
import { createServer } from 'node:http'
import { extname, join, normalize, sep } from 'node:path'
import { fileURLToPath } from 'node:url'

const TYPES = { '.html': 'text/html', '.js': 'text/javascript', '.json': 'application/json', '.map': 'application/json' }
const root = fileURLToPath(new URL('../..', import.meta.url))

/** A static file server on the loopback interface: GET with single byte ranges, nothing outside of the repository. */
export function serve(port = 0) {
  const server = createServer(async (request, response) => {
    try {
      const path = normalize(decodeURIComponent(new URL(request.url, 'http://localhost').pathname))
      const file = join(root, path.endsWith(sep) ? join(path, 'index.html') : path)
      const { size } = await stat(file)
      const range = /^bytes=(\d+)-(\d*)$/.exec(request.headers.range ?? '')
      const start = range ? Number(range[1]) : 0
      const end = range?.[2] ? Math.min(Number(range[2]), size - 1) : size - 1
      response.writeHead(range ? 206 : 200, {
        'content-type': TYPES[extname(file)] ?? 'application/octet-stream',
        'content-length': Math.max(0, end - start + 1),
        'accept-ranges': 'bytes',
        ...(range && { 'content-range': `bytes ${start}-${end}/${size}` }),
      })
      if (request.method === 'HEAD' || end < start) response.end()
      else createReadStream(file, { start, end }).pipe(response)
    } catch {
      response.writeHead(404).end('not found')
    }
  })
  return new Promise((resolve) => {
    server.listen(port, '127.0.0.1', () => resolve({ url: `http://127.0.0.1:${server.address().port}`, close: () => server.close() }))
  })
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const { url } = await serve(Number(process.argv[2] ?? 8080))
  console.log(`${url}/examples/browser/`)
}
