// A small drawing of a benchmark: bus bandwidth and time over size, both axes logarithmic, one self-contained SVG for light and dark pages.

export interface PlotPoint {
  bytes: number
  microseconds: number
  /** 1e9 bytes a second. */
  busbw: number
}

const WIDTH = 640
const PANEL = { left: 84, right: 20, height: 190, gap: 46, top: 64 }

const STYLE = `
  text { font: 12px system-ui, sans-serif; fill: #4a4a4a }
  .title { font-size: 15px; font-weight: 600; fill: #1c1c1c }
  .name { font-weight: 600; fill: #1c1c1c }
  .grid { stroke: #dcdcdc; stroke-width: 1 }
  .busbw { --color: #1f6fb2 } .time { --color: #b4570f }
  path { fill: none; stroke: var(--color); stroke-width: 2; stroke-linejoin: round }
  circle { fill: var(--color) }
  @media (prefers-color-scheme: dark) {
    text { fill: #b4b4b4 } .title, .name { fill: #f2f2f2 } .grid { stroke: #3c3c3c }
    .busbw { --color: #6db3f2 } .time { --color: #f0a05a }
  }`

/** Two panels over one another. Points without a size or bandwidth (a barrier, one rank) cannot be drawn on such axes and are left out. */
export function plotSvg({ title, subtitle, points }: { title: string; subtitle: string; points: readonly PlotPoint[] }): string {
  const drawn = points.filter(({ bytes }) => bytes > 0)
  const panels = [
    panel('busbw', 'bus bandwidth', bandwidthLabel, drawn, ({ busbw }) => busbw, 0),
    panel('time', 'time, median', timeLabel, drawn, ({ microseconds }) => microseconds, 1),
  ]
  const height = PANEL.top + 2 * (PANEL.height + PANEL.gap)
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${WIDTH} ${height}" width="${WIDTH}" height="${height}" role="img">`,
    `<title>${escaped(title)}</title><style>${STYLE}\n</style>`,
    `<text class="title" x="20" y="24">${escaped(title)}</text><text x="20" y="42">${escaped(subtitle.length > 96 ? `${subtitle.slice(0, 95)}…` : subtitle)}</text>`,
    ...panels,
    '</svg>\n',
  ].join('\n')
}

function panel(
  kind: string,
  name: string,
  label: (value: number) => string,
  points: readonly PlotPoint[],
  read: (point: PlotPoint) => number,
  index: number,
): string {
  const top = PANEL.top + index * (PANEL.height + PANEL.gap)
  const heading = `<text class="name" x="20" y="${top + 4}">${name}</text>`
  const shown = points.filter((point) => read(point) > 0)
  if (shown.length === 0) return `${heading}<text x="${PANEL.left}" y="${top + PANEL.height / 2}">nothing to draw</text>`
  const box = { top: top + 14, bottom: top + PANEL.height }
  const x = axis(
    shown.map(({ bytes }) => bytes),
    2,
    PANEL.left,
    WIDTH - PANEL.right,
  )
  const y = axis(shown.map(read), 10, box.bottom, box.top)
  const at = (point: PlotPoint): string => `${x.place(point.bytes)} ${y.place(read(point))}`
  const columns = x.ticks.map(
    (bytes) =>
      `<path class="grid" d="M${x.place(bytes)} ${box.top}V${box.bottom}"/><text x="${x.place(bytes)}" y="${box.bottom + 17}" text-anchor="middle">${sizeLabel(bytes)}</text>`,
  )
  const rows = y.ticks.map(
    (value) =>
      `<path class="grid" d="M${PANEL.left} ${y.place(value)}H${WIDTH - PANEL.right}"/><text x="${PANEL.left - 8}" y="${y.place(value) + 4}" text-anchor="end">${label(value)}</text>`,
  )
  const dots = shown.map(
    (point) =>
      `<circle cx="${x.place(point.bytes)}" cy="${y.place(read(point))}" r="3"><title>${sizeLabel(point.bytes)}: ${label(read(point))}</title></circle>`,
  )
  return [heading, ...columns, ...rows, `<g class="${kind}"><path d="M${shown.map(at).join('L')}"/>`, ...dots, '</g>'].join('\n')
}

/** A logarithmic axis from pixel `from` to pixel `to`, over whole powers of `base`; at most seven of them are labelled. */
function axis(values: readonly number[], base: number, from: number, to: number): { ticks: number[]; place(value: number): number } {
  const log = (value: number): number => Math.log(value) / Math.log(base)
  const first = Math.floor(log(Math.min(...values)) + 1e-9)
  const last = Math.max(Math.ceil(log(Math.max(...values)) - 1e-9), first + 1)
  const step = Math.ceil((last - first) / 6)
  const ticks: number[] = []
  for (let power = first; power <= last; power += step) ticks.push(base ** power)
  const place = (value: number): number => Math.round((from + ((log(value) - first) / (last - first)) * (to - from)) * 10) / 10
  return { ticks, place }
}

function sizeLabel(bytes: number): string {
  const unit = bytes >= 2 ** 30 ? 30 : bytes >= 2 ** 20 ? 20 : bytes >= 2 ** 10 ? 10 : 0
  return `${round(bytes / 2 ** unit)} ${{ 0: 'B', 10: 'KiB', 20: 'MiB', 30: 'GiB' }[unit]}`
}

function timeLabel(microseconds: number): string {
  if (microseconds >= 1e6) return `${round(microseconds / 1e6)} s`
  return microseconds >= 1000 ? `${round(microseconds / 1000)} ms` : `${round(microseconds)} µs`
}

function bandwidthLabel(gigabytes: number): string {
  if (gigabytes >= 1) return `${round(gigabytes)} GB/s`
  return gigabytes >= 1e-3 ? `${round(gigabytes * 1000)} MB/s` : `${round(gigabytes * 1e6)} kB/s`
}

function round(value: number): string {
  return String(Number(value.toPrecision(3)))
}

function escaped(text: string): string {
  return text.replaceAll('&', '&amp;').replaceAll('<', '&lt;')
}
