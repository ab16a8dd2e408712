// Who answers: the server that sent the page, or the kernel of a notebook. A page in a file has file.ts.

import type { ImageInfo, Reply, Source } from "./protocol";

/** Reads `uint32 length, JSON, buffers`, as the server sends it. */
export function unpacked(packed: ArrayBuffer): Reply {
  const length = new DataView(packed).getUint32(0, true);
  const text = new TextDecoder().decode(new Uint8Array(packed, 4, length));
  const { buffers: lengths = [], ...meta } = JSON.parse(text) as { buffers?: number[] };
  let start = 4 + length;
  const buffers = lengths.map((bytes) => {
    const buffer = packed.slice(start, start + bytes); // copied, because a Float32Array wants an aligned start
    start += bytes;
    return buffer;
  });
  return { meta, buffers };
}

export class HttpSource implements Source {
  constructor(private readonly base = "api/") {}

  ask(name: string, parameters: Record<string, unknown>, signal?: AbortSignal): Promise<Reply> {
    return this.post(name, JSON.stringify(parameters), { "Content-Type": "application/json" }, signal);
  }

  async upload(file: File): Promise<ImageInfo> {
    const headers = { "Content-Type": "application/octet-stream" };
    return (await this.post(`upload?name=${encodeURIComponent(file.name)}`, file, headers)).meta as ImageInfo;
  }

  private async post(
    name: string,
    body: BodyInit,
    headers: Record<string, string>,
    signal?: AbortSignal,
  ): Promise<Reply> {
    let response: Response;
    try {
      response = await fetch(this.base + name, {
        method: "POST",
        body,
        headers: { ...headers, "X-Attention-Transfer": "1" },
        credentials: "same-origin",
        signal: signal ?? null,
      });
    } catch (cause) {
      signal?.throwIfAborted();
      throw new Error("The server does not answer; is the command still running?", { cause });
    }
    if (!response.ok) throw new Error(await refusal(response));
    return unpacked(await response.arrayBuffer());
  }
}

async function refusal(response: Response): Promise<string> {
  const text = await response.text();
  try {
    const { error } = JSON.parse(text) as { error?: string };
    if (error) return error;
  } catch {
    // Not every refusal is the service's own: one of the server below it is plain text.
  }
  return `The server refused (${response.status}). ${text.slice(0, 200)}`;
}

/** The part of anywidget's model that is used. */
export interface WidgetModel {
  on(event: "msg:custom", callback: (message: WidgetMessage, buffers: (DataView | ArrayBuffer)[]) => void): void;
  off(event: "msg:custom", callback: (message: WidgetMessage, buffers: (DataView | ArrayBuffer)[]) => void): void;
  send(message: unknown, callbacks?: unknown, buffers?: ArrayBuffer[]): void;
}

interface WidgetMessage {
  id: number;
  meta?: unknown;
  error?: string;
}

export class WidgetSource implements Source {
  private static next = 0;
  private readonly waiting = new Map<number, { resolve: (reply: Reply) => void; reject: (error: Error) => void }>();

  constructor(private readonly model: WidgetModel) {
    model.on("msg:custom", this.receive);
  }

  ask(name: string, parameters: Record<string, unknown>): Promise<Reply> {
    return this.send(name, parameters, []);
  }

  async upload(file: File): Promise<ImageInfo> {
    return (await this.send("upload", { name: file.name }, [await file.arrayBuffer()])).meta as ImageInfo;
  }

  close(): void {
    this.model.off("msg:custom", this.receive);
  }

  private send(name: string, parameters: Record<string, unknown>, buffers: ArrayBuffer[]): Promise<Reply> {
    WidgetSource.next += 1; // counted over all views of a widget, because each of them hears every reply
    const id = WidgetSource.next;
    return new Promise((resolve, reject) => {
      this.waiting.set(id, { resolve, reject });
      this.model.send({ id, name, arguments: parameters }, undefined, buffers);
    });
  }

  private readonly receive = (message: WidgetMessage, buffers: (DataView | ArrayBuffer)[]): void => {
    const asked = this.waiting.get(message.id);
    if (asked === undefined) return;
    this.waiting.delete(message.id);
    if (message.error !== undefined) asked.reject(new Error(message.error));
    else asked.resolve({ meta: message.meta, buffers: buffers.map(copied) });
  };
}

function copied(buffer: DataView | ArrayBuffer): ArrayBuffer {
  if (buffer instanceof ArrayBuffer) return buffer.slice(0);
  return buffer.buffer.slice(buffer.byteOffset, buffer.byteOffset + buffer.byteLength) as ArrayBuffer;
}
