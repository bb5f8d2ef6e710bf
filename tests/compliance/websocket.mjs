// The suite is written for Bun, whose WebSocket sends headers; Node 20 has none, 22 one without.
import { WebSocket } from "ws";

globalThis.WebSocket = WebSocket;
